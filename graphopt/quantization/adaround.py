"""AdaRound: which weights to round up and which down, learnt by gradients through torch.

    codes = adaround(W, H, params)               # W (G, N, K) of G groups, H (G, K, K), a quantizer per group

Needs the torch extra. Nothing is drawn at random: the sums H stand for all samples at once. Not here: the closed forms
for the same error (rounding.py), where H comes from (moments.py), nor whether the result is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from graphopt.errors import MissingDependency
from graphopt.quantization.affine import QParams, storage
from graphopt.quantization.rounding import DAMPING, damped

if TYPE_CHECKING:
    import numpy as np
    import torch

STEPS = 1000
_RATE = 0.1
_LOW, _HIGH = -0.1, 1.1
"""The sigmoid is stretched to this range and clipped to 0..1, so that it reaches both ends."""
_WARM_UP = 0.2
"""Part of the steps in which weights move freely; then they are driven to 0 or 1."""
_BETA = (20.0, 2.0)
_WEIGHT = 3.0
"""Of the term that drives them, beside an error that is 1 for rounding to nearest."""


def need_torch(what: str) -> None:
    """Raises MissingDependency, in one line, where torch is not installed."""
    import importlib.util

    if importlib.util.find_spec("torch") is None:
        raise MissingDependency(what, "torch")


def adaround(
    rows: np.ndarray, moments: np.ndarray, params: Sequence[QParams], damping: float = DAMPING, steps: int = STEPS
) -> np.ndarray:
    """Codes floor(w / s) + 0 or 1 with a small sum over groups and rows of (w - q)^T H (w - q).

    Adaptive rounding (arXiv:2004.10568): q = s clip(floor(w / s) + h(v)), h(v) = clip(1.2 sigmoid(v) - 0.1, 0, 1), and
    Adam lowers E(q) / E(nearest) + 3 mean(1 - |2 h - 1|^b) over v, where b falls from 20 to 2 by a cosine and the
    second term begins after a fifth of the steps. The paper draws batches of samples; E is the same sum over all of
    them. On one thread: the same codes whatever the number of cores.

    Args:
        rows: W, float32 (G, N, K).
        moments: H, float64 (G, K, K), symmetric, positive semi-definite.
        params: symmetric quantizers along axis 1, per row, one per group.
        damping: fraction of the mean of H's diagonal that is added to it.
        steps: of Adam.

    Returns:
        Codes (G, N, K).

    Raises:
        MissingDependency: torch is not installed.
    """
    need_torch("rounding by gradients")
    import numpy as np
    import torch

    scale = np.stack([item.spread(group.shape)[0] for item, group in zip(params, rows, strict=True)])
    steps_of = (rows / np.broadcast_to(scale, rows.shape)).astype(np.float32)
    low, high = -params[0].type.qmax, params[0].type.qmax
    hessian = np.stack([damped(group, damping) for group in moments])
    hessian /= max(float(np.trace(hessian, axis1=1, axis2=2).max()), 1e-30)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.enable_grad():
            problem = _Problem(*(torch.from_numpy(np.array(item, np.float32)) for item in (steps_of, scale, hessian)))
            up = problem.solve(steps, low, high).numpy()
    finally:
        torch.set_num_threads(threads)
    codes: np.ndarray = np.clip(np.floor(steps_of) + up, low, high).astype(storage(params[0].type))
    return codes


class _Problem:
    """Weights in steps of their scales, (G, N, K); scales, of the same shape or per row; and H."""

    def __init__(self, weights: torch.Tensor, scale: torch.Tensor, hessian: torch.Tensor) -> None:
        self.weights, self.scale, self.hessian = weights, scale, hessian

    def solve(self, steps: int, low: int, high: int) -> torch.Tensor:
        """0 or 1 for each weight."""
        import torch

        floor = torch.floor(self.weights)
        share = (self.weights - floor - _LOW) / (_HIGH - _LOW)
        free = torch.log(share / (1 - share)).requires_grad_()
        whole = float(self.error(torch.clamp(torch.round(self.weights), low, high))) or 1.0
        adam = torch.optim.Adam([free], lr=_RATE)
        for step in range(steps):
            adam.zero_grad()
            soft = _rectified(free)
            loss = self.error(torch.clamp(floor + soft, low, high)) / whole
            beta = _beta(step / steps)
            if beta is not None:
                loss = loss + _WEIGHT * (1 - (2 * soft - 1).abs().pow(beta)).mean()
            loss.backward()  # type: ignore[no-untyped-call]
            adam.step()
        return (_rectified(free.detach()) >= 0.5).float()

    def error(self, codes: torch.Tensor) -> torch.Tensor:
        """E of codes, soft or not."""
        gap = (self.weights - codes) * self.scale
        return ((gap @ self.hessian) * gap).sum()


def _rectified(free: Any) -> Any:
    import torch

    return torch.clamp(torch.sigmoid(free) * (_HIGH - _LOW) + _LOW, 0, 1)


def _beta(done: float) -> float | None:
    """The exponent when this part of the steps is done; None while weights move freely."""
    import math

    if done < _WARM_UP:
        return None
    part = (done - _WARM_UP) / (1 - _WARM_UP)
    return _BETA[1] + 0.5 * (_BETA[0] - _BETA[1]) * (1 + math.cos(math.pi * part))
