"""1,000 classes: the ImageNet MobileNetV2 on crops of natural photos; correct is what the float model says.

The photos are those of the scikit-image and scikit-learn wheels and of Debian's mate-backgrounds. Calibration crops are
taken from the left 40 % of every photo, scored crops from the right 60 %.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.quant import sources
from benchmarks.quant.drawing import draw
from benchmarks.quant.export import export
from benchmarks.quant.fashion import IMAGENET, imagenet_mobilenet
from benchmarks.quant.task import LABEL, Arrays, Spec, top1, write

if TYPE_CHECKING:
    import numpy as np

SIDE = 224
CALIBRATION, TEST = 256, 1000
SPLIT = 0.4
SKIMAGE = ("astronaut.png", "chelsea.png", "coffee.png", "motorcycle_left.png", "rocket.jpg")
SKLEARN = ("china.jpg", "flower.jpg")


def _files() -> list[str]:
    wheels = [(sources.SKIMAGE, f"skimage/data/{name}") for name in SKIMAGE]
    wheels += [(sources.SKLEARN, f"sklearn/datasets/images/{name}") for name in SKLEARN]
    nature = sources.debian_files("mate-backgrounds") / "usr/share/backgrounds/mate/nature"
    found = [sources.wheel_member(wheel, member) for wheel, member in wheels]
    return [str(path) for path in (*found, *sorted(nature.glob("*.jpg")))]


def _build(folder: Path) -> None:
    import numpy as np
    import torch

    files = _files()
    calibration, test = (
        draw("photos", {"files": files, "side": SIDE, "count": count, "seed": seed, "share": share})
        for count, seed, share in ((CALIBRATION, 1, (0, SPLIT)), (TEST, 2, (SPLIT, 1)))
    )
    module = imagenet_mobilenet()
    export(module, {"x": torch.zeros(2, 3, SIDE, SIDE)}, "logits", folder / "model.onnx")
    write(folder / "calibration.npz", {"x": normalized(calibration["image"])})
    # Imported late: tasks.py lists this module.
    from benchmarks.quant.tasks import open_file

    run = open_file(str(folder / "model.onnx"))
    said = [run({"x": normalized(part)})["logits"] for part in np.array_split(test["image"], TEST // 50)]
    logits = np.concatenate(said)
    write(folder / "test.npz", {"x": test["image"], LABEL: logits.argmax(-1), "logits": logits})


def normalized(images: np.ndarray) -> np.ndarray:
    """uint8 [n, h, w, 3] -> float32 [n, 3, h, w], normalized as the model was trained."""
    import numpy as np

    mean, deviation = (np.array(values, np.float32) for values in IMAGENET)
    return np.ascontiguousarray(((images.astype(np.float32) / 255 - mean) / deviation).transpose(0, 3, 1, 2))


def _prepare(rows: Arrays) -> Arrays:
    return {"x": normalized(rows["x"])}


def signal_share(outputs: Any, rows: Arrays) -> Any:
    """Share of a sample's logits that is signal: max(0, 1 - |noise|^2 / |signal|^2), means removed; 20 dB are 0.99."""
    import numpy as np

    (logits,) = outputs.values()
    truth = rows["logits"] - rows["logits"].mean(-1, keepdims=True)
    noise = logits - rows["logits"]
    return np.clip(1 - np.square(noise).sum(-1) / np.square(truth).sum(-1), 0, None)


SPECS = (
    Spec(
        "mobilenet-1000",
        "MobileNetV2, 1,000 classes, photos",
        _build,
        {"agreement": top1, "signal share": signal_share},
        _prepare,
    ),
)
