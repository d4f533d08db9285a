"""Which versions of the standard ops between opset 8 and 23 mean for an older node what they meant before.

Such a version added types, attributes with a default, or optional inputs. Every other version needs a rule
(`_opset_rules.py`); a version in neither place is not known to be safe. Read from the operators' change logs.
"""

from __future__ import annotations

import functools

NEWEST = 23
"""Conversion goes up to this opset."""

# Versions: the ops that these versions left as they were.
_UNCHANGED = """
8 10 11 12 22: MaxPool
8 12 13: Max Min
8 13: Mean Sum
9 11 12 13 19 21 23: Constant
9 11 13: Gemm
9 11 13 21 23: Flatten
9 13: Greater Less MatMul
9 13 19 21 23: Cast
9 16: PRelu
10 11 19 22: AveragePool
11: Compress Hardmax LogSoftmax NonMaxSuppression OneHot ReduceSum Softmax Split TopK
11 12 13: ArgMax ArgMin
11 12 13 20: ReduceMax ReduceMin
11 13: Concat DepthToSpace Gather ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMean ReduceProd
    ReduceSumSquare Slice
11 13 16 19 21 23: If Loop
11 13 19: Equal
11 16 19 21 23: Scan
11 18 22: LpPool
11 21 23: Squeeze Unsqueeze
11 22: Conv ConvTranspose MaxUnpool
12 13: Clip GatherND
12 13 15: Pow
13: Abs Ceil Erf Exp Expand Floor GatherElements LRN Log MeanVarianceNormalization Mod Neg NonZero Reciprocal
    Sigmoid Sign SoftmaxCrossEntropyLoss SpaceToDepth Sqrt Tanh Tile
13 14: Add Div Mul Relu Sub
13 14 16 19 21 23: Identity
13 14 19 21 23: Reshape
13 15 19 21 23: Shape
13 16 18: ScatterElements ScatterND
13 18 19 21 23: Pad
13 19 21 23: DequantizeLinear QuantizeLinear Size
13 20: IsNaN
13 21 23: Transpose
13 22: Dropout NegativeLogLikelihoodLoss
14: CumSum
14 22: GRU LSTM RNN
15: BatchNormalization
16: GreaterOrEqual LeakyRelu LessOrEqual Where
18: OptionalGetElement OptionalHasElement
18 19: Resize
19 21 23: CastLike
20: IsInf
20 21 23: ConstantOfShape
21: QLinearMatMul
22: Acos Acosh Asin Asinh Atan Atanh Bernoulli Cos Cosh DeformConv Det Elu EyeLike GlobalAveragePool GlobalLpPool
    GlobalMaxPool GridSample HardSigmoid HardSwish InstanceNormalization LpNormalization MaxRoiPool Mish Multinomial
    RandomNormal RandomNormalLike RandomUniform RandomUniformLike RoiAlign Round Selu Sin Sinh Softplus Softsign Tan
    ThresholdedRelu
"""


@functools.cache
def unchanged() -> dict[str, frozenset[int]]:
    """Per op, the versions that did not change the meaning of older nodes."""
    table: dict[str, set[int]] = {}
    text = _UNCHANGED.replace("\n    ", " ")
    for line in text.strip().splitlines():
        versions, _, ops = line.partition(":")
        for op in ops.split():
            table.setdefault(op, set()).update(map(int, versions.split()))
    return {op: frozenset(versions) for op, versions in table.items()}
