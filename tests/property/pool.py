"""A draft whose values have known shapes: what blocks take operands from and put results into.

Not here: the blocks (blocks.py).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

import numpy as np
from numpy.random import Generator
from onnx import TensorProto, helper
from property.draft import Dim, Draft, Shape
from property.harness import BINDINGS

FLOAT, INT64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL
SYMBOLS: dict[str, Dim] = {name: (BINDINGS[0][name], BINDINGS[1][name]) for name in ("N", "M")}


def fixed(*sizes: int) -> Shape:
    """A static shape."""
    return tuple((size, size) for size in sizes)


def is_static(shape: Shape) -> bool:
    return all(a == b for a, b in shape)


def sizes(shape: Shape) -> list[int]:
    return [a for a, _ in shape]


@dataclass
class Pool(Draft):
    """A draft whose live values are those of known shape, and the random source of the graph."""

    random: Generator = field(default_factory=np.random.default_rng)
    unwanted: set[str] = field(default_factory=set)
    """Values that are to stay unread."""

    @classmethod
    def around(cls, draft: Draft, random: Generator) -> Pool:
        """The draft as a pool: blocks may use every value of known shape."""
        return cls(**{item.name: getattr(draft, item.name) for item in dataclasses.fields(Draft)}, random=random)

    def chance(self, probability: float) -> bool:
        return bool(self.random.random() < probability)

    def one(self, *choices: object) -> object:
        return choices[int(self.random.integers(len(choices)))]

    def put(self, op: str, inputs: list[str], shape: Shape, kind: int | None = None, **attributes: object) -> str:
        """Append a node whose output has this shape."""
        name = self.add(op, inputs, kind, **attributes)
        self.shapes[name] = shape
        return name

    def given(self, shape: Shape, kind: int = FLOAT) -> str:
        """A graph input of this shape: a new one, or one that is there."""
        there = [name for name in self.inputs if self.shapes.get(name) == shape and self.types[name] == kind]
        if there and self.chance(0.5):
            return str(self.one(*there))
        symbol = {pair: name for name, pair in SYMBOLS.items()}
        dims: list[int | str | None] = [a if a == b else symbol.get((a, b)) for a, b in shape]
        name = self.input(self.fresh("x"), kind, dims)
        self.shapes[name] = shape
        return name

    def const(self, array: np.ndarray, hint: str = "w") -> str:
        """A constant: an initializer, a Constant node, or one that is there with the same contents."""
        array = np.asarray(array)
        for name, there in self.weights.items():
            if tuple(there.dims) != array.shape or there.data_type != helper.np_dtype_to_tensor_dtype(array.dtype):
                continue
            if np.array_equal(self.array(name), array) and self.chance(0.3):
                return name
        name = self.weight(array, hint)
        self.shapes[name] = fixed(*array.shape)
        if self.chance(0.2):
            tensor = self.weights.pop(name)
            self.nodes.append(_constant(name, tensor))
        return name

    def floats(self, *shape: int, spread: float = 1.0, positive: bool = False) -> str:
        """A random float constant; weights of the same shape are sometimes shared."""
        there = [
            name
            for name, tensor in self.weights.items()
            if tuple(tensor.dims) == shape and tensor.data_type == FLOAT and not name.startswith("ints")
        ]
        if there and not positive and self.chance(0.25):
            return str(self.one(*there))
        low = 0.5 if positive else -spread
        array = self.random.uniform(low, 1.5 if positive else spread, shape).astype(np.float32)
        if array.size and not positive and self.chance(0.15):
            array.reshape(-1)[int(self.random.integers(array.size))] = self.one(0.0, -0.0, 1.0, -1.0)
        return self.const(array)

    def ints(self, *values: int) -> str:
        return self.const(np.array(values, np.int64), "ints")

    def scalar(self, value: float) -> str:
        """A float constant of one element, of a rank that vectors broadcast with."""
        shape = self.one((), (), (1,))
        return self.const(np.full(shape, value, np.float32), "c")  # type: ignore[arg-type]

    def pick(self, rank: int | None = None, kind: int = FLOAT, at_least: int = 0) -> str | None:
        """A live value, the newer the likelier."""
        options = [
            name
            for name, shape in self.shapes.items()
            if self.types.get(name) == kind
            and name not in self.weights
            and (rank is None or len(shape) == rank)
            and len(shape) >= at_least
        ]
        if not options:
            return None
        weight = np.arange(1, len(options) + 1, dtype=float) ** 2
        return str(self.random.choice(options, p=weight / weight.sum()))

    def value(self, rank: int | None = None, at_least: int = 0) -> str:
        """A live float value of that rank, or a new input."""
        found = self.pick(rank, at_least=at_least)
        if found is not None and self.chance(0.85):
            return found
        rank = rank if rank is not None else int(self.random.integers(max(at_least, 1), 5))
        return self.given(self.shape(rank))

    def shape(self, rank: int) -> Shape:
        """A random shape: symbols in front more often, channels and small sizes behind."""
        dims: list[Dim] = []
        for axis in range(rank):
            if self.chance(0.35 if axis == 0 else 0.15):
                dims.append(SYMBOLS[str(self.one("N", "M"))])
            else:
                size = int(self.random.choice([1, 2, 3, 4, 6, 8], p=[0.1, 0.2, 0.2, 0.25, 0.15, 0.1]))
                dims.append((size, size))
        return tuple(dims)

    def pair(self, op: str, a: str, b: str, shape: Shape, kind: int | None = None) -> str:
        """A commutative op with its operands in either order."""
        return self.put(op, [a, b] if self.chance(0.5) else [b, a], shape, kind)


def _constant(name: str, tensor: TensorProto) -> object:
    return helper.make_node("Constant", [], [name], value=tensor)


def broadcast(a: Shape, b: Shape) -> Shape | None:
    """The shape of an elementwise op, None when it is not legal."""
    rank = max(len(a), len(b))
    a, b = ((1, 1),) * (rank - len(a)) + a, ((1, 1),) * (rank - len(b)) + b
    dims = []
    for one, two in zip(a, b, strict=True):
        if one != two and one != (1, 1) and two != (1, 1):
            return None
        dims.append(two if one == (1, 1) else one)
    return tuple(dims)
