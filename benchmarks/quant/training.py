"""Training with torch: image classifiers in minutes, and linear heads on frozen features.

Seeded, two threads: the same library versions on the same kind of processor give the same weights.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from benchmarks.figure import say

if TYPE_CHECKING:
    import numpy as np

# Read when torch is first imported: threads that spin while they wait take the cores from each other on a busy machine.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
THREADS = 2
SEED = 20260101
DEAD = 1e-4
"""A feature whose standard deviation is less than this part of the largest one is rounding noise."""


def seeded() -> None:
    """Two threads and the seed; call before a module is constructed."""
    import torch

    torch.set_num_threads(THREADS)
    torch.manual_seed(SEED)


def train(module: Any, images: Any, labels: Any, *, epochs: int, rate: float, batch: int = 128) -> None:
    """Fit a classifier with AdamW and a one-cycle learning rate; images are flipped at random.

    Args:
        module: float32 [n, 1, h, w] -> logits; trained in place.
        images, labels: float32 [n, 1, h, w] and int64 [n], numpy.
    """
    import torch

    # Channels last halves the time of a step here; the file is written in the usual layout.
    module.to(memory_format=torch.channels_last)
    x, y = torch.from_numpy(images), torch.from_numpy(labels)
    generator = torch.Generator().manual_seed(SEED)
    steps = epochs * (len(x) // batch)
    optimizer = torch.optim.AdamW(module.parameters(), lr=rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    module.train()
    for epoch in range(epochs):
        order = torch.randperm(len(x), generator=generator)
        seen = 0.0
        for index in range(len(x) // batch):
            chosen = order[index * batch : (index + 1) * batch]
            flipped = torch.rand(batch, generator=generator) < 0.5
            inputs = torch.where(flipped[:, None, None, None], x[chosen].flip(3), x[chosen])
            loss = torch.nn.functional.cross_entropy(module(inputs), y[chosen])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            seen += float(loss.detach())
        say(f"  epoch {epoch + 1} of {epochs}: loss {seen / (len(x) // batch):.4f}")
    module.to(memory_format=torch.contiguous_format).eval()


def linear_head(features: np.ndarray, labels: np.ndarray, decay: float = 1e-4) -> tuple[Any, Any]:
    """Multinomial logistic regression by L-BFGS on standardized features; one that never changes gets no weight.

    Args:
        features: float32 [n, d]. labels: int64 [n].
        decay: weight of the squared norm.

    Returns:
        weight float32 [classes, d] and bias float32 [classes] for the features as they are, as torch tensors.
    """
    import torch

    x, y = torch.from_numpy(features).double(), torch.from_numpy(labels)
    mean, scale = x.mean(0), x.std(0)
    alive = scale > DEAD * scale.max()
    scale = torch.where(alive, scale, torch.inf)
    x = (x - mean) / scale
    weight = torch.zeros(int(y.max()) + 1, x.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(len(weight), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=200, history_size=20, line_search_fn="strong_wolfe")

    def closure() -> Any:
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(x @ weight.T + bias, y) + decay * weight.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        plain = weight / scale
        return plain.float(), (bias - plain @ mean).float()
