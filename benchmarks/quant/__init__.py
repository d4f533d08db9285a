"""The ground that quantization is measured on: tasks with real or honestly trained models, and the peers' quantizers.

from benchmarks.quant import tasks
task = tasks.load("fashion-cnn")          built on first use, in the user's cache folder
task.model, task.calibration, task.score(run)
"""
