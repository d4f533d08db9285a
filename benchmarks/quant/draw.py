"""Images made with Pillow, in an environment of their own: rendered lines of text, and crops of photos.

    python draw.py text SPEC.json OUT.npz       SPEC: strings, fonts, seed
    python draw.py photos SPEC.json OUT.npz     SPEC: files, side, count, seed, share

Runs without graphopt; ocr.py and photos.py start it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

HEIGHT, WIDTH = 48, 320


def text(spec: dict[str, Any]) -> dict[str, Any]:
    """One image per string: random font, size, colours, slant, blur and noise, as scans and screenshots have them.

    Returns:
        image uint8 [n, 48, 320, 3] in RGB, filled up at the right with zeros; width int64 [n]; kept int64 [n], the
        index of the string. Strings that are wider than the image are left out.
    """
    rng = np.random.default_rng(spec["seed"])
    rows: list[np.ndarray] = []
    widths: list[int] = []
    kept: list[int] = []
    for index, string in enumerate(spec["strings"]):
        line = _line(string, spec["fonts"][rng.integers(len(spec["fonts"]))], rng)
        width = round(line.width * HEIGHT / line.height)
        if width > WIDTH:
            continue
        row = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
        row[:, :width] = np.asarray(line.resize((width, HEIGHT), Image.Resampling.BILINEAR))
        rows.append(row)
        widths.append(width)
        kept.append(index)
    return {"image": np.stack(rows), "width": np.array(widths), "kept": np.array(kept)}


def _line(string: str, font_file: str, rng: np.random.Generator) -> Image.Image:
    font = ImageFont.truetype(font_file, int(rng.integers(18, 44)))
    left, top, right, bottom = font.getbbox(string)
    margin = int(rng.integers(3, 9))
    paper = rng.integers(150, 256, 3)
    ink = np.clip(paper - rng.integers(70, 240), 0, 255)
    if rng.random() < 0.3:
        paper, ink = ink, paper
    size = (round(right - left) + 2 * margin, round(bottom - top) + 2 * margin)
    image = Image.new("RGB", size, tuple(map(int, paper)))
    ImageDraw.Draw(image).text((margin - left, margin - top), string, tuple(map(int, ink)), font)
    image = image.rotate(rng.uniform(-2, 2), Image.Resampling.BICUBIC, fillcolor=tuple(map(int, paper)))
    image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0, 1.5)))
    noisy = np.asarray(image) + rng.normal(0, rng.uniform(0, 14), (size[1], size[0], 3))
    return Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))


def photos(spec: dict[str, Any]) -> dict[str, Any]:
    """Random crops of 30 to 100 % of a vertical strip of each photo, resized, half of them mirrored.

    `share` is (from, to), the strip as fractions of the width: two disjoint strips give disjoint pixels.

    Returns:
        image uint8 [count, side, side, 3] in RGB; photo int64 [count], the index of the file.
    """
    rng = np.random.default_rng(spec["seed"])
    strips = []
    for name in spec["files"]:
        photo = Image.open(name).convert("RGB")
        low, high = (round(photo.width * part) for part in spec["share"])
        strip = photo.crop((low, 0, high, photo.height))
        strip.thumbnail((1200, 1200))
        strips.append(strip)
    rows = []
    for index in range(spec["count"]):
        rows.append(_crop(strips[index % len(strips)], spec["side"], rng))
    order = np.arange(spec["count"]) % len(strips)
    shuffled = rng.permutation(spec["count"])
    return {"image": np.stack(rows)[shuffled], "photo": order[shuffled]}


def _crop(strip: Image.Image, side: int, rng: np.random.Generator) -> np.ndarray:
    edge = min(strip.width, strip.height) * rng.uniform(0.3, 1.0) ** 0.5
    x, y = rng.uniform(0, strip.width - edge), rng.uniform(0, strip.height - edge)
    crop = strip.resize((side, side), Image.Resampling.BILINEAR, box=(x, y, x + edge, y + edge), reducing_gap=3.0)
    array = np.asarray(crop)
    return array[:, ::-1] if rng.random() < 0.5 else array


if __name__ == "__main__":
    made = {"text": text, "photos": photos}[sys.argv[1]](json.loads(Path(sys.argv[2]).read_text(encoding="utf-8")))
    np.savez(sys.argv[3], **made)
