"""Tensors inside a file, with their shapes and types read once: passes ask for both all the time."""

from __future__ import annotations

from graphopt import ir
from graphopt.ir import sites

_Base = ir.serde.TensorProtoTensor


class ProtoTensor(_Base):
    """onnx_ir's view of a TensorProto, which makes shape and element type anew whenever it is asked."""

    __slots__ = ("_dtype", "_shape")

    def __init__(self, tensor: ir.serde.TensorProtoTensor) -> None:
        super().__init__(tensor.raw)
        self._shape = super().shape
        self._dtype = super().dtype

    @property
    def shape(self) -> ir.Shape:  # type: ignore[override]
        return self._shape

    @property
    def dtype(self) -> ir.DataType:  # type: ignore[override]
        return self._dtype


def keep_types(model: ir.Model) -> None:
    """Put such a tensor in the place of each that is read from a TensorProto."""
    for scope in sites.scopes(model):
        for value in scope.graph.initializers.values():
            if type(value.const_value) is _Base:
                value.const_value = ProtoTensor(value.const_value)
        for node in scope.graph:
            for name, attr in node.attributes.data.items():
                if type(attr.value) is _Base:
                    node.attributes[name] = ir.AttrTensor(name, ProtoTensor(attr.value), doc_string=attr.doc_string)
