"""Reading text: PP-OCRv4 recognition on rendered lines of text, 48 x 320 pixels, exact match and character error rate.

Fonts are Debian's DejaVu, Liberation and FreeFont; words are those of the 20 Newsgroups texts, and numbers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.quant import sources, training
from benchmarks.quant.drawing import draw
from benchmarks.quant.export import to_opset
from benchmarks.quant.task import LABEL, Arrays, Spec, write
from benchmarks.quant.text import read_texts

if TYPE_CHECKING:
    import numpy as np

CALIBRATION, TEST = 256, 1000
LONGEST = 22  # characters; what is wider than the image when drawn is left out
FONTS = ("fonts-dejavu-core", "fonts-liberation", "fonts-freefont-ttf")


def strings(words: Sequence[str], count: int, rng: np.random.Generator) -> list[str]:
    """Lines of one to three words in several cases, mixed with numbers, dates and prices."""
    made: list[str] = []
    while len(made) < count:
        kind = rng.random()
        if kind < 0.75:
            line = _cased(" ".join(rng.choice(words, rng.integers(1, 4))), rng)
        else:
            a, b, c = rng.integers(0, 10_000, 3)
            forms = (f"{a}", f"${a % 1000}.{b % 100:02}", f"{b % 31 + 1}/{c % 12 + 1}/{1990 + a % 40}", f"{a}-{b:04}")
            line = f"{rng.choice(words).title()} {rng.choice(forms)}" if kind < 0.9 else str(rng.choice(forms))
        if len(line) <= LONGEST:
            made.append(line)
    return made


def _cased(line: str, rng: np.random.Generator) -> str:
    change: tuple[Callable[[str], str], ...] = (str.lower, str.title, str.upper, str.capitalize)
    return change[rng.integers(len(change))](line)


def _words() -> list[str]:
    _, texts = read_texts("20newsgroups-test")
    counts = Counter(word for text in texts for word in text.split())
    return sorted(word for word, count in counts.items() if count >= 5 and word.isascii() and word.isalpha())


def _fonts() -> list[str]:
    places = [sources.debian_files(package) / "usr/share/fonts" for package in FONTS]
    return [str(path) for place in places for path in sorted(place.rglob("*.ttf"))]


def _build(folder: Path) -> None:
    import numpy as np

    from graphopt import models

    words, fonts = _words(), _fonts()
    parts: list[Arrays] = []
    # Twice as many as needed: lines that are too wide drop out.
    for index, count in enumerate((CALIBRATION, TEST)):
        lines = strings(words, 2 * count, np.random.default_rng([training.SEED, index]))
        made = draw("text", {"strings": lines, "fonts": fonts, "seed": index})
        kept = {name: array[:count] for name, array in made.items()}
        texts = np.array([lines[row] for row in kept["kept"]])
        parts.append({"x": kept["image"], "width": kept["width"], LABEL: texts})
    to_opset(models.fetch("ppocr-rec-v4"), folder / "model.onnx")
    write(folder / "calibration.npz", _prepare(parts[0]))
    write(folder / "test.npz", parts[1])


def _prepare(rows: Arrays) -> Arrays:
    """float32 [n, 3, 48, 320] in BGR from -1 to 1; right of the line stands 0, as in PaddleOCR's preprocessing."""
    import numpy as np

    images = (rows["x"][..., ::-1].astype(np.float32) / 255 - 0.5) / 0.5
    outside = np.arange(images.shape[2]) >= rows["width"][:, None]
    images[np.broadcast_to(outside[:, None], images.shape[:3])] = 0
    return {"x": np.ascontiguousarray(images.transpose(0, 3, 1, 2))}


@cache
def alphabet() -> str:
    """The characters of classes 1, 2, ... of the recognition model; class 0 is the blank, the last one a space."""
    import onnx

    from graphopt import models

    loaded = onnx.load(models.fetch("ppocr-rec-v4"), load_external_data=False)
    text = next(entry.value for entry in loaded.metadata_props if entry.key == "character")
    return "".join(text.split("\n")) + " "


def decode(classes: np.ndarray, characters: str) -> str:
    """CTC best path: runs of one class count once, blanks (0) not at all; `classes` is int [steps]."""
    kept = [now for before, now in zip([0, *classes[:-1]], classes, strict=True) if now and now != before]
    return "".join(characters[index - 1] for index in kept)


def edits(a: str, b: str) -> int:
    """Levenshtein distance."""
    row = list(range(len(b) + 1))
    for i, left in enumerate(a, start=1):
        corner, row[0] = row[0], i
        for j, right in enumerate(b, start=1):
            corner, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, corner + (left != right))
    return row[-1]


def _read(outputs: Any, rows: Arrays) -> list[tuple[str, str]]:
    (scores,) = outputs.values()
    # The model reads a space where a line begins or ends; readers of text strip it.
    said = [decode(classes, alphabet()).strip() for classes in scores.argmax(-1)]
    return list(zip(said, map(str, rows[LABEL]), strict=True))


def exact(outputs: Any, rows: Arrays) -> Any:
    """1 where the line is read without a mistake."""
    return [said == truth for said, truth in _read(outputs, rows)]


def characters_right(outputs: Any, rows: Arrays) -> Any:
    """1 - CER of each line, at least 0."""
    return [max(0.0, 1 - edits(said, truth) / len(truth)) for said, truth in _read(outputs, rows)]


SPECS = (
    Spec(
        "ppocr-rec",
        "PP-OCRv4 recognition, rendered text",
        _build,
        {"exact match": exact, "1 - CER": characters_right},
        _prepare,
        batch=20,
        version=2,
    ),
)
