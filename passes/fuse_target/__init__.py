"""Fusions into ONNX Runtime's own ops (stage fuse-target), made only where the target has the kernel."""
