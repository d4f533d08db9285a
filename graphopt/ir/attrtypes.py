"""Numbers of attribute types, AttributeProto.AttributeType in onnx.proto: the same in a file and in the IR.

For places that must not import onnx_ir, or that ask very often; elsewhere `ir.AttributeType` says it by name.
"""

TENSOR, GRAPH, TENSORS, GRAPHS = 4, 5, 9, 10
