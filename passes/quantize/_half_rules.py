"""What is known about ops in half precision: which are worth it, which are unsafe and why, what bounds its output.

Tables only; _half_plan.py decides with them. Which operands may be narrowed at all says graphopt.ir.typetable.
"""

from __future__ import annotations

# Ops that a device does much faster in half precision; a region is converted for their sake.
WORTHWHILE = frozenset(
    {
        *("Conv", "ConvTranspose", "DeformConv", "MatMul", "Gemm", "Einsum", "LSTM", "GRU", "RNN", "Attention"),
        *("FusedConv", "FusedMatMul", "FusedGemm", "MultiHeadAttention", "GroupQueryAttention"),
    }
)

# Ops of com.microsoft whose half-precision kernels compute what the float32 ones do; any other stays as it is.
MICROSOFT = frozenset(
    {
        *("Attention", "BiasGelu", "FastGelu", "FusedConv", "FusedGemm", "FusedMatMul", "Gelu", "GroupQueryAttention"),
        *("MultiHeadAttention", "QuickGelu", "RotaryEmbedding", "SkipLayerNormalization"),
        *("SkipSimplifiedLayerNormalization",),
    }
)

_GROWS = "sums and products over many elements leave the range"
_RANDOM = "other numbers would be drawn"
_PLACES = "coordinates need more than 11 bits"
_SIGNAL = "spectra need more than 11 bits"
_LOSS = "losses and their gradients need float32"
_FAST = "it leaves the range for small arguments"

UNSAFE: dict[str, str] = {
    **dict.fromkeys(("ReduceSum", "ReduceSumSquare", "ReduceL1", "ReduceL2", "ReduceProd"), _GROWS),
    **dict.fromkeys(("ReduceLogSum", "ReduceLogSumExp", "CumSum", "CumProd", "LpNormalization", "LpPool"), _GROWS),
    **dict.fromkeys(("GlobalLpPool", "MeanVarianceNormalization", "LRN", "Det"), _GROWS),
    **dict.fromkeys(("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"), _RANDOM),
    **dict.fromkeys(("Multinomial", "Bernoulli"), _RANDOM),
    **dict.fromkeys(("GridSample", "AffineGrid", "RoiAlign", "MaxRoiPool", "NonMaxSuppression", "Range"), _PLACES),
    **dict.fromkeys(("DFT", "STFT", "MelWeightMatrix", "HannWindow", "HammingWindow", "BlackmanWindow"), _SIGNAL),
    **dict.fromkeys(("NegativeLogLikelihoodLoss", "SoftmaxCrossEntropyLoss"), _LOSS),
    **dict.fromkeys(("Exp", "Sinh", "Cosh"), _FAST),
    **dict.fromkeys(("Sin", "Cos", "Tan"), "the rounding of a large argument is an error of the whole period"),
    "Mod": "a remainder needs all bits of its operands",
    "BitCast": "it reads the bits of a float32",
    "CastLike": "its second input says which type is wanted",
    "EyeLike": "its element type is fixed by an attribute",
}
"""Standard ops that stay in float32, and why."""


def reworded(why: str) -> str:
    """The reason for bfloat16: it has the range, and eight bits of precision."""
    return why.replace(_FAST, "it needs more than 8 bits").replace("leave the range", "need more than 8 bits")


# Their output is small whatever comes in.
BOUNDED = frozenset(
    {
        *("Softmax", "Sigmoid", "HardSigmoid", "Tanh", "Erf", "Sin", "Cos", "Sign", "Softsign", "Atan", "Hardmax"),
        *("LayerNormalization", "RMSNormalization", "InstanceNormalization", "GroupNormalization"),
    }
)

# A tiny value stays one behind these; what divides by it must see it in float32 too.
KEEPS_TINY = frozenset(
    {
        *("Sqrt", "Reciprocal", "Max", "Clip", "Abs", "Pow", "Identity", "Reshape", "Squeeze", "Unsqueeze"),
        *("Transpose", "Expand", "Flatten", "Slice", "Gather"),
    }
)

# Operands that only select, lay out or repeat: what enters slot 0 leaves unchanged.
MOVES = frozenset(
    {
        *("Identity", "Reshape", "Squeeze", "Unsqueeze", "Transpose", "Expand", "Flatten", "Slice", "Gather", "Tile"),
        *("Split", "GatherND", "GatherElements", "DepthToSpace", "SpaceToDepth"),
    }
)

# Operands that stay float32 although their schemas allow less: kernels want them so.
FLOAT_SLOTS: dict[str, frozenset[int]] = {
    "Resize": frozenset({1, 2}),
    "Upsample": frozenset({1}),
    "Dropout": frozenset({1}),
    "OneHot": frozenset({0, 1}),
}

# Operands that are added: an error of half a smallest number does no harm.
ADDED_SLOTS: dict[str, frozenset[int]] = {
    "Conv": frozenset({2}),
    "ConvTranspose": frozenset({2}),
    "FusedConv": frozenset({2}),
    "Gemm": frozenset({2}),
    "LayerNormalization": frozenset({2}),
    "InstanceNormalization": frozenset({2}),
    "GroupNormalization": frozenset({2}),
    "BatchNormalization": frozenset({2, 3}),
    "BiasGelu": frozenset({1}),
    "LSTM": frozenset({3}),
    "GRU": frozenset({3}),
    "RNN": frozenset({3}),
}
