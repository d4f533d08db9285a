"""The ground that quantization is measured on: tasks with real or honestly trained models, and the peers' quantizers.

    task = tasks.load("fashion-cnn")        made on first use, in the user's cache folder
    task.model, task.calibration, task.score(run)

Here lies what benchmarks/quant_accuracy.py makes its table with.
"""
