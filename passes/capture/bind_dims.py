"""Specialising: named dims of the inputs, or whole input shapes, become numbers."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from graphopt.errors import GraphoptError
from graphopt.manager.base import Pass
from graphopt.spec import Spec

if TYPE_CHECKING:
    from graphopt import ir
    from graphopt.manager.context import Context

_META = "graphopt.passes.bind_dims"


@dataclass(frozen=True)
class BindDims(Pass):
    """Give named input dims numbers: bind-dims{batch=1 seq=128}, bind-dims{shapes=[x=1x3x224x224]}.

    Options:
        dims: `name=number`; as an option of its own a name is written plainly (`batch=1`), in the list any name is.
        shapes: `input=AxBxC`, the whole shape of an input (`input=` for a scalar).

    A name that no input has is an error.
    """

    name: ClassVar[str] = "bind-dims"
    stage: ClassVar[str] = "capture"
    needs: ClassVar[tuple[str, ...]] = ()
    keeps: ClassVar[tuple[str, ...]] = ()
    changes_interface: ClassVar[bool] = True
    dims: tuple[str, ...] = ()
    shapes: tuple[str, ...] = ()

    @classmethod
    def from_spec(cls, spec: Spec) -> BindDims:
        """Every option but `dims` and `shapes` is the name of a dim."""
        lists: dict[str, tuple[str, ...]] = {"dims": (), "shapes": ()}
        for key, value in spec.options:
            values = value if isinstance(value, tuple) else (value,)
            if key in lists:
                lists[key] += values
            elif isinstance(value, tuple):
                raise GraphoptError(f"pass 'bind-dims': {key}=[...] is a list, one number is wanted")
            else:
                lists["dims"] += (f"{key}={value}",)
        return cls(lists["dims"], lists["shapes"])

    def check(self) -> None:
        if not self.dims and not self.shapes:
            raise GraphoptError("pass 'bind-dims' needs a dim: bind-dims{batch=1}")
        self._bindings()
        self._shapes()

    def __str__(self) -> str:
        plain: list[tuple[str, str]] = []
        listed: list[tuple[str, str]] = []
        for text in self.dims:
            key, number = text.rsplit("=", 1)
            usable = re.fullmatch(r"[A-Za-z_]\w*", key) and key not in ("dims", "shapes")
            (plain if usable else listed).append((key, number))
        options: list[tuple[str, str | tuple[str, ...]]] = list(plain)
        if listed:
            options.append(("dims", tuple(f"{key}={number}" for key, number in listed)))
        if self.shapes:
            options.append(("shapes", self.shapes))
        return str(Spec(self.name, tuple(options)))

    def _bindings(self) -> dict[str, int]:
        found: dict[str, int] = {}
        for text in self.dims:
            key, equals, number = text.rpartition("=")
            if not equals or not key or not number.isdecimal():
                raise GraphoptError(f"pass 'bind-dims': {text!r} is not name=number, such as batch=1")
            found[key] = int(number)
        return found

    def _shapes(self) -> dict[str, list[int]]:
        found: dict[str, list[int]] = {}
        for text in self.shapes:
            key, equals, shape = text.rpartition("=")
            parts = [part for part in re.split(r"[x,]", shape) if part]
            if not equals or not key or not all(part.isdecimal() for part in parts):
                raise GraphoptError(f"pass 'bind-dims': {text!r} is not input=AxBxC, such as x=1x3x224x224")
            found[key] = [int(part) for part in parts]
        return found

    def run(self, model: ir.Model, ctx: Context) -> None:
        from graphopt.analysis.shapes import bind_dims, set_input_shapes

        done: dict[str, int] = model.meta.setdefault(_META, {})
        # Bound by an earlier run: the name is gone from the model.
        bindings = {key: number for key, number in self._bindings().items() if done.get(key) != number}
        shapes = {key: shape for key, shape in self._shapes().items() if not _has_shape(model, key, shape)}
        if not bindings and not shapes:
            return
        ctx.rewriter.count_model()
        try:
            changed = bind_dims(model, bindings) if bindings else 0
            changed += set_input_shapes(model, shapes) if shapes else 0
        except GraphoptError as error:
            raise GraphoptError(f"pass {str(self)!r}: {error}") from None
        done.update(bindings)
        ctx.remarks.applied(self.name, "<whole model>", "", f"{changed} values have another shape")


def _has_shape(model: ir.Model, name: str, shape: list[int]) -> bool:
    return any(
        value.name == name and value.shape is not None and list(value.shape) == shape for value in model.graph.inputs
    )
