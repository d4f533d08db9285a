"""Fashion-MNIST: four small nets trained here, and the ImageNet MobileNetV2 with a linear probe on images of 96 x 96.

The architectures are in nets.py and models/cnn.py; training and export in training.py.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.figure import say
from benchmarks.quant import sources, training
from benchmarks.quant.export import export
from benchmarks.quant.task import LABEL, Arrays, Spec, top1, write

if TYPE_CHECKING:
    import numpy as np

MEAN, DEVIATION = 0.2860, 0.3530  # of the train images
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CALIBRATION = 512
SIDE = 96
PROBE_IMAGES, PROBE_TEST = 10_000, 10_000


def normalized(images: np.ndarray) -> np.ndarray:
    """uint8 [n, 28, 28] -> float32 [n, 1, 28, 28] of mean 0 and deviation 1."""
    import numpy as np

    return ((images[:, None].astype(np.float32) / 255 - MEAN) / DEVIATION).astype(np.float32)


def calibration_rows(count: int, total: int) -> np.ndarray:
    """`count` of `total` train samples, in random order."""
    import numpy as np

    return np.random.default_rng(training.SEED).permutation(total)[:count]


def _small(constructor: str, epochs: int, rate: float) -> Callable[[Path], None]:
    def build(folder: Path) -> None:
        import torch

        from benchmarks.quant import nets

        images, labels = sources.fashion_mnist("train")
        training.seeded()
        module = getattr(nets, constructor)()
        training.train(module, normalized(images), labels, epochs=epochs, rate=rate)
        export(module, {"x": torch.zeros(2, 1, 28, 28)}, "logits", folder / "model.onnx")
        write(folder / "calibration.npz", {"x": normalized(images[calibration_rows(CALIBRATION, len(images))])})
        test, truth = sources.fashion_mnist("t10k")
        write(folder / "test.npz", {"x": test, LABEL: truth})

    return build


def _prepare_small(rows: Arrays) -> Arrays:
    return {"x": normalized(rows["x"])}


def upsampled(images: np.ndarray) -> np.ndarray:
    """uint8 [n, 28, 28] -> float32 [n, 3, 96, 96], bilinear (half-pixel centres), normalized as ImageNet's images are.

    Grey values stand in all three channels.
    """
    import numpy as np

    across = _bilinear(images.shape[1], SIDE)
    grey = across @ (images.astype(np.float32) / 255) @ across.T
    mean, deviation = (np.array(values, np.float32)[:, None, None] for values in IMAGENET)
    return ((grey[:, None] - mean) / deviation).astype(np.float32)


def _bilinear(inputs: int, outputs: int) -> np.ndarray:
    """The matrix float32 [outputs, inputs] of bilinear interpolation along one axis."""
    import numpy as np

    position = np.clip((np.arange(outputs) + 0.5) * inputs / outputs - 0.5, 0, inputs - 1)
    low = np.minimum(position.astype(int), inputs - 2)
    matrix = np.zeros((outputs, inputs), np.float32)
    matrix[np.arange(outputs), low] = 1 - (position - low)
    matrix[np.arange(outputs), low + 1] = position - low
    return matrix


def _prepare_upsampled(rows: Arrays) -> Arrays:
    return {"x": upsampled(rows["x"])}


def _mobilenet(folder: Path) -> None:
    import numpy as np
    import torch

    module = imagenet_mobilenet()
    images, labels = sources.fashion_mnist("train")
    chosen = calibration_rows(PROBE_IMAGES, len(images))
    head, module.classifier = module.classifier, torch.nn.Identity()
    say(f"  features of {PROBE_IMAGES} images")
    with torch.inference_mode():
        parts = [module(torch.from_numpy(upsampled(images[rows]))).numpy() for rows in np.split(chosen, 200)]
    weight, bias = training.linear_head(np.concatenate(parts), labels[chosen])
    head = torch.nn.Linear(*weight.T.shape)
    head.load_state_dict({"weight": weight, "bias": bias})
    module.classifier = head
    export(module, {"x": torch.zeros(2, 3, SIDE, SIDE)}, "logits", folder / "model.onnx")
    write(folder / "calibration.npz", {"x": upsampled(images[chosen[:CALIBRATION]])})
    test, truth = sources.fashion_mnist("t10k")
    write(folder / "test.npz", {"x": test[:PROBE_TEST], LABEL: truth[:PROBE_TEST]})


def imagenet_mobilenet() -> Any:
    """The zoo's MobileNetV2 with its real weights, as a torch module for inference."""
    import torch

    from graphopt import models
    from graphopt.models.cnn import MobileNetV2

    training.seeded()
    module = MobileNetV2()
    module.load_state_dict(torch.load(models.fetch("mobilenet-v2"), map_location="cpu", weights_only=True))
    return module.eval()


_ACCURACY = {"top-1": top1}

SPECS = (
    Spec("fashion-cnn", "plain CNN, Fashion-MNIST", _small("plain_cnn", 3, 5e-3), _ACCURACY, _prepare_small),
    Spec("fashion-depthwise", "depthwise net, Fashion-MNIST", _small("depthwise", 3, 5e-3), _ACCURACY, _prepare_small),
    Spec("fashion-vit", "ViT, Fashion-MNIST", _small("VisionTransformer", 4, 2e-3), _ACCURACY, _prepare_small),
    Spec("fashion-resnet", "ResNet-14, Fashion-MNIST", _small("resnet", 3, 5e-3), _ACCURACY, _prepare_small),
    Spec("mobilenet-fashion", "MobileNetV2 + probe, Fashion-MNIST", _mobilenet, _ACCURACY, _prepare_upsampled),
)
