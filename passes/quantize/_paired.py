"""What a quantized layer is given, and what it was given in the float model: sums gathered in the order of the graph.

    sums = Paired(ctx, weights, originals, one_by_one=True).moments(node)

Not here: what is made of them (graphopt/quantization/rounding.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING

from graphopt.ir.builder import NoMatch
from graphopt.ir.prefix import prefix
from graphopt.passes.quantize._weight_calibrated import BUDGET, accumulator, pair_bytes, why_no_moments
from graphopt.quantization.moments import PairedMoments, why_useless

if TYPE_CHECKING:
    import numpy as np

    from graphopt import ir
    from graphopt.manager.context import Context
    from graphopt.passes.quantize._weight_sites import Weight


class Paired:
    """Gathers the sums of a layer, or of several.

    Args:
        weights: of the quantized nodes, in the order of the graph.
        originals: the float nodes that they were made of, in `ctx.floats`.
        one_by_one: a pass over the samples per layer, which sees those before it as they were refined. Otherwise a pass
            for as many layers as BUDGET holds the sums of; what the float model has is then taken to be what the
            quantized one has, as layers would make up for errors that others are about to mend.
    """

    def __init__(
        self, ctx: Context, weights: Mapping[ir.Node, Weight], originals: Mapping[ir.Node, ir.Node], *, one_by_one: bool
    ) -> None:
        self._ctx, self._originals, self._one_by_one = ctx, originals, one_by_one
        self._ahead = dict(weights)
        self._found: dict[ir.Node, PairedMoments] = {}

    def moments(self, node: ir.Node) -> PairedMoments:
        """The sums of a node's inputs.

        Raises:
            NoMatch: they cannot be had.
        """
        if node not in self._found:
            why = why_no_moments(self._ahead[node])
            if why is not None:
                del self._ahead[node]
                raise NoMatch(why)
            self._gather()
        found = self._found.pop(node)
        if not found.finite:
            raise NoMatch("its inputs hold NaN or infinities on the samples")
        why = why_useless(found.fit.yy)
        if why is not None:
            raise NoMatch(why)
        return found

    def _gather(self) -> None:
        floats = self._ctx.floats
        assert floats is not None
        same = not self._one_by_one
        group: list[ir.Node] = []
        taken = 0
        for node, weight in self._ahead.items():
            if why_no_moments(weight) is not None:
                continue
            taken += pair_bytes(weight, same=same)
            if group and (self._one_by_one or taken > BUDGET):
                break
            group.append(node)
        shown: dict[tuple[str, str], _Several] = {}
        for node in group:
            x, y = self._originals[node].inputs[0], node.inputs[0]
            assert x is not None and y is not None
            self._found[node] = accumulator(self._ahead.pop(node), partial(PairedMoments, same=same))
            shown.setdefault((str(x.name), str(y.name)), _Several()).items.append(self._found[node])
        calibration = self._ctx.need_calibration()
        if self._one_by_one:
            calibration.fold_pairs((floats, self._ctx.model), shown)
        else:
            inputs = {value.name for value in self._ctx.model.graph.inputs}
            needed = prefix(self._ctx.model, [y for _, y in shown if y not in inputs])
            calibration.fold(needed, {y: items for (_, y), items in shown.items()})


class _Several:
    """Accumulators that are shown the same values."""

    def __init__(self) -> None:
        self.items: list[PairedMoments] = []

    def update(self, y: np.ndarray) -> None:
        self.update_pair(y, y)

    def update_pair(self, x: np.ndarray, y: np.ndarray) -> None:
        for item in self.items:
            item.update_pair(x, y)
