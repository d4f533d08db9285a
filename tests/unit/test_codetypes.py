"""Types of codes by opset: the table agrees with onnx, and the verifier refuses what an opset lacks."""

from __future__ import annotations

import onnx
import pytest

from graphopt.errors import VerificationError
from graphopt.ir.codetypes import SINCE
from graphopt.ir.text import from_text
from graphopt.ir.verifier import verify


def test_the_table_is_that_of_onnx() -> None:
    found: dict[str, int] = {}
    for schema in onnx.defs.get_all_schemas_with_history():
        if schema.name != "DequantizeLinear" or schema.domain != "":
            continue
        allowed = {item.type_param_str: item.allowed_type_strs for item in schema.type_constraints}
        for text in allowed[schema.inputs[0].type_str]:
            name = text.removeprefix("tensor(").removesuffix(")").upper()
            found[name] = min(found.get(name, schema.since_version), schema.since_version)
    assert found == SINCE


@pytest.mark.parametrize(
    ("opset", "kind", "message"),
    [(20, "int4", "'x' is INT4, which it has from opset 21 on; the model has 20"), (21, "int4", ""), (17, "int8", "")],
)
def test_codes_that_the_opset_lacks_break_a_rule(opset: int, kind: str, message: str) -> None:
    model = from_text(f"""<ir_version: 10, opset_import: ["": {opset}]>
    g ({kind}[4] x, float s) => (float[4] y) {{ y = DequantizeLinear (x, s) }}""")
    if not message:
        verify(model)
        return
    with pytest.raises(VerificationError, match=message):
        verify(model)


def test_floats_are_no_codes() -> None:
    model = from_text("""<ir_version: 10, opset_import: ["": 21]>
    g (float[4] x, float s) => (float[4] y) { y = DequantizeLinear (x, s) }""")
    with pytest.raises(VerificationError, match="'x' is FLOAT, which it never has as codes"):
        verify(model)


def test_int32_is_only_read() -> None:
    model = from_text("""<ir_version: 10, opset_import: ["": 21]>
    g (float[4] x, float s, int32 z) => (int32[4] y) { y = QuantizeLinear (x, s, z) }""")
    with pytest.raises(VerificationError, match="'z' is INT32, which it never has as codes"):
        verify(model)
