"""Fusions into standard ONNX ops (stage fuse-portable)."""
