"""The symbols of one shape analysis: new ones, and names for what model files call their dimensions.

A file's dimension may be nameless (None, '', '?', -1), an expression over other names, or a name that no expression
could hold (`batch-size`). Not here: arithmetic (`dims`).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from graphopt.analysis import dims
from graphopt.ir.sites import scopes

if TYPE_CHECKING:
    from graphopt import ir
    from graphopt.analysis.dims import Dim


# What inference made, in this analysis or an earlier one of the same model.
_MADE = re.compile(r"_[dv]\d+")


class Symbols:
    """Makes symbols that no value of the model has, and maps declared dimensions to symbols or expressions."""

    def __init__(self) -> None:
        self.counter = 0
        self.minted: set[str] = set()
        self._reserved: set[str] = set()
        self._plain: set[str] = set()
        self._renamed: dict[str, Dim] = {}

    def learn(self, model: ir.Model) -> None:
        """Take in the names that stand in the model, so that new ones differ."""
        for text in _texts(model):
            names = {text} if text.isidentifier() else dims.symbols(dims.symbol(text))
            self._reserved |= names
            if names == {text}:
                self._plain.add(text)

    def fresh(self, prefix: str) -> Dim:
        """A new symbol."""
        while True:
            name = f"{prefix}{self.counter}"
            self.counter += 1
            if name not in self._reserved:
                self.minted.add(name)
                return dims.symbol(name)

    def minted_since(self, mark: int, names: frozenset[str]) -> bool:
        """Whether one of the symbols was made when the counter stood at `mark` or later."""
        return any(name in self.minted and int(name[2:]) >= mark for name in names)

    def name(self, dim: Dim) -> Dim:
        """The symbol or expression of a declared dimension; a new symbol where it has no usable name (None, ?, -1)."""
        return self.fresh("_d") if isinstance(dim, int) or dims.is_unknown(dim) else self.known_name(dim)

    def known_name(self, dim: Dim) -> Dim:
        """The symbol or expression of a named dimension; it is an expression where all its symbols stand alone too."""
        if isinstance(dim, int) or dims.is_unknown(dim):
            return dim
        text = dim.value or ""
        if text.isidentifier():
            return dims.symbol(text)
        if text in self._renamed:
            return self._renamed[text]
        symbols = dims.symbols(dim)
        named: Dim
        if symbols == {text}:
            named = dims.symbol(text)
        elif symbols and all(name in self._plain or _MADE.fullmatch(name) for name in symbols):
            named = dims.canonical(dim)
        else:
            named = dims.symbol(self._free_name(re.sub(r"\W", "_", text)))
        self._renamed[text] = named
        return named

    def _free_name(self, text: str) -> str:
        name = text if text.isidentifier() else f"_{text}"
        while name in self._reserved:
            name += "_"
        self._reserved.add(name)
        return name


def _texts(model: ir.Model) -> set[str]:
    """Every text that stands for a dimension of a value of the model."""
    texts: set[str] = set()
    for scope in scopes(model):
        groups = [scope.graph.inputs, scope.graph.outputs, *(node.outputs for node in scope.graph)]
        for value in (value for group in groups for value in group):
            texts.update(dim.value for dim in value.shape or () if not isinstance(dim, int) and dim.value)
    return texts
