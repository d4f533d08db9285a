"""The arithmetic of quantization: quantizers, statistics of tensors, ranges, metrics. Pure functions over numpy arrays.

Not here: what is done to a graph (`graphopt.passes.quantize`), and running models (`graphopt.calibrating`).
"""
