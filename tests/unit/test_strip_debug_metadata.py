"""The exporter's debugging notes go, layer names stay, and the pass says so."""

from __future__ import annotations

from graphopt.ir.text import from_text
from graphopt.manager import pipeline, runner
from graphopt.manager.context import Context


def test_stack_traces_go_and_layer_names_stay() -> None:
    model = from_text('<ir_version: 10, opset_import: ["" : 21]> g (float[4] x) => (float[4] y) { [n] y = Relu(x) }')
    node = model.graph[0]
    node.metadata_props.update(
        {
            "pkg.torch.onnx.stack_trace": "File /home/someone/model.py",
            "pkg.torch.onnx.name_scopes": "['', 'layer']",
            "namespace": "layer",
            "mine": "kept",
        }
    )
    result = runner.run(model, pipeline.parse("strip-debug-metadata"), Context(model))
    assert set(node.metadata_props) == {"pkg.torch.onnx.name_scopes", "namespace", "mine"}
    assert result.effects() == {"strip-debug-metadata": 1}
    assert [remark.status for remark in result.ctx.remarks] == ["note"]
    assert not runner.run(model, pipeline.parse("strip-debug-metadata"), Context(model)).rewrites
