"""What convolutions, pools, norms, activations and Resize compute, as torch functions; `OPS` maps ONNX names to them.

Not here: ops that move, compare and reduce (torch_ops.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from graphopt.errors import GraphoptError
from graphopt.interop.torch_ops import T, ints

# -- padding ----------------------------------------------------------------------------------------------------


def _pads(
    x: T,
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
    pads: Sequence[int] | None,
    auto_pad: str,
) -> list[tuple[int, int]]:
    """(begin, end) of each spatial axis."""
    rank = len(kernel)
    if auto_pad in ("NOTSET", "VALID"):
        flat = list(pads) if pads is not None and auto_pad == "NOTSET" else [0] * (2 * rank)
        return [(flat[axis], flat[axis + rank]) for axis in range(rank)]
    found = []
    for length, size, stride, dilation in zip(x.shape[2:], kernel, strides, dilations, strict=True):
        total = max(0, (-(-length // stride) - 1) * stride + (size - 1) * dilation + 1 - length)
        small, large = total // 2, total - total // 2
        found.append((small, large) if auto_pad == "SAME_UPPER" else (large, small))
    return found


def _pad(x: T, pads: list[tuple[int, int]], value: float = 0.0) -> T:
    return F.pad(x, [amount for pair in reversed(pads) for amount in pair], value=value)


def _even(pads: list[tuple[int, int]]) -> bool:
    return all(begin == end for begin, end in pads)


def pad(
    x: T,
    amounts: T | None = None,
    value: T | None = None,
    axes: T | None = None,
    *,
    mode: str = "constant",
    pads: Sequence[int] | None = None,
) -> T:
    flat = ints(amounts) if amounts is not None else ints(pads)
    assert flat is not None
    dims = ints(axes) if axes is not None else list(range(x.dim()))
    assert dims is not None
    pairs = [(0, 0)] * x.dim()
    for index, dim in enumerate(dims):
        pairs[dim] = (flat[index], flat[index + len(dims)])
    if mode == "constant":
        return _pad(x, pairs, 0.0 if value is None else value.item())
    for dim, (begin, end) in enumerate(pairs):
        length = x.shape[dim]
        place = torch.arange(-begin, length + end, device=x.device)
        if mode == "edge":
            place = place.clamp(0, length - 1)
        elif mode == "wrap":
            place = place % length
        else:
            period = max(2 * (length - 1), 1)
            place = place.abs() % period
            place = torch.where(place >= length, period - place, place)
        x = x.index_select(dim, place)
    return x


# -- convolutions and pools -------------------------------------------------------------------------------------


def conv(
    x: T,
    w: T,
    b: T | None = None,
    *,
    strides: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    dilations: Sequence[int] | None = None,
    group: int = 1,
    kernel_shape: Sequence[int] | None = None,
    auto_pad: str = "NOTSET",
) -> T:
    rank = x.dim() - 2
    stride, dilation = list(strides or [1] * rank), list(dilations or [1] * rank)
    around = _pads(x, w.shape[2:], stride, dilation, pads, auto_pad)
    padding = [begin for begin, _ in around]
    if not _even(around):
        x, padding = _pad(x, around), [0] * rank
    function = (F.conv1d, F.conv2d, F.conv3d)[rank - 1]
    return function(x, w, b, stride, padding, dilation, group)


def conv_transpose(
    x: T,
    w: T,
    b: T | None = None,
    *,
    strides: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    dilations: Sequence[int] | None = None,
    output_padding: Sequence[int] | None = None,
    group: int = 1,
    kernel_shape: Sequence[int] | None = None,
    auto_pad: str = "NOTSET",
) -> T:
    if auto_pad not in ("NOTSET", "VALID"):
        raise GraphoptError(f"ConvTranspose with auto_pad={auto_pad} has no torch form")
    rank = x.dim() - 2
    around = _pads(x, w.shape[2:], [1] * rank, [1] * rank, pads, auto_pad)
    extra = list(output_padding or [0] * rank)
    function = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[rank - 1]
    stride, dilation = list(strides or [1] * rank), list(dilations or [1] * rank)
    out = function(x, w, b, stride, [0] * rank, extra, group, dilation)
    # A negative padding crops, which is what pads mean here.
    return _pad(out, [(-begin, -end) for begin, end in around])


def max_pool(
    x: T,
    *,
    kernel_shape: Sequence[int],
    strides: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    dilations: Sequence[int] | None = None,
    ceil_mode: int = 0,
    auto_pad: str = "NOTSET",
    storage_order: int = 0,
) -> T:
    rank = len(kernel_shape)
    stride, dilation = list(strides or [1] * rank), list(dilations or [1] * rank)
    around = _pads(x, kernel_shape, stride, dilation, pads, auto_pad)
    if any(begin or end for begin, end in around):
        lowest = -math.inf if x.is_floating_point() else torch.iinfo(x.dtype).min
        x = _pad(x, around, lowest)
    function = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[rank - 1]
    return function(x, list(kernel_shape), stride, 0, dilation, bool(ceil_mode))


def average_pool(
    x: T,
    *,
    kernel_shape: Sequence[int],
    strides: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    dilations: Sequence[int] | None = None,
    ceil_mode: int = 0,
    count_include_pad: int = 0,
    auto_pad: str = "NOTSET",
) -> T:
    rank = len(kernel_shape)
    if any(dilation != 1 for dilation in dilations or ()):
        raise GraphoptError("AveragePool with dilations has no torch form")
    stride = list(strides or [1] * rank)
    around = _pads(x, kernel_shape, stride, [1] * rank, pads, auto_pad)
    function = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[rank - 1]
    padded = _pad(x, around)
    out = function(padded, list(kernel_shape), stride, 0, bool(ceil_mode))
    if count_include_pad or not any(begin or end for begin, end in around):
        return out
    inside = _pad(torch.ones_like(x[:1, :1]), around)
    return out / function(inside, list(kernel_shape), stride, 0, bool(ceil_mode))


def global_average_pool(x: T) -> T:
    return x.mean(list(range(2, x.dim())), keepdim=True)


def global_max_pool(x: T) -> T:
    return x.amax(list(range(2, x.dim())), keepdim=True)


# -- norms ------------------------------------------------------------------------------------------------------


def batch_normalization(
    x: T,
    scale: T,
    bias: T,
    mean: T,
    var: T,
    *,
    epsilon: float = 1e-5,
    momentum: float = 0.9,
    training_mode: int = 0,
    spatial: int = 1,
) -> T:
    if training_mode or not spatial:
        raise GraphoptError("BatchNormalization in training mode or over single elements has no torch form")
    # Not F.batch_norm: it gives no gradients to the statistics.
    scale, bias, mean, var = (item.reshape([-1] + [1] * (x.dim() - 2)) for item in (scale, bias, mean, var))
    return (x - mean) * (torch.rsqrt(var + epsilon) * scale) + bias


def layer_normalization(
    x: T, scale: T, bias: T | None = None, *, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1
) -> T:
    dims = list(range(axis % x.dim(), x.dim()))
    if list(scale.shape) == [x.shape[dim] for dim in dims] and (bias is None or bias.shape == scale.shape):
        return F.layer_norm(x, scale.shape, scale, bias, epsilon)
    out = F.layer_norm(x, [x.shape[dim] for dim in dims], None, None, epsilon) * scale
    return out if bias is None else out + bias


def rms_normalization(x: T, scale: T, *, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1) -> T:
    dims = list(range(axis % x.dim(), x.dim()))
    return x * torch.rsqrt((x * x).mean(dims, keepdim=True) + epsilon) * scale


def instance_normalization(x: T, scale: T, bias: T, *, epsilon: float = 1e-5) -> T:
    return F.instance_norm(x, None, None, scale, bias, True, 0.0, epsilon)


def group_normalization(
    x: T, scale: T, bias: T, *, num_groups: int, epsilon: float = 1e-5, stash_type: int = 1, opset: int
) -> T:
    if opset < 21:  # one scale per group
        scale, bias = (item.repeat_interleave(x.shape[1] // num_groups) for item in (scale, bias))
    return F.group_norm(x, num_groups, scale, bias, epsilon)


def lp_normalization(x: T, *, axis: int = -1, p: int = 2) -> T:
    return F.normalize(x, p=float(p), dim=axis, eps=0.0)


# -- activations ------------------------------------------------------------------------------------------------


def _softmax(function: Callable[..., T], default: int) -> Callable[..., T]:
    def apply(x: T, *, axis: int | None = None, opset: int) -> T:
        if opset >= 13:
            return function(x, default if axis is None else axis)
        start = (1 if axis is None else axis) % max(x.dim(), 1)
        return function(x.flatten(start), start).reshape(x.shape)  # older opsets: over all axes from this one on

    apply.__name__ = apply.__qualname__ = function.__name__
    return apply


def clip(x: T, low: T | None = None, high: T | None = None, *, min: float | None = None, max: float | None = None) -> T:
    bottom: Any = min if low is None else low
    top: Any = max if high is None else high
    if bottom is not None and isinstance(bottom, T):
        x = torch.maximum(x, bottom)
    elif bottom is not None:
        x = x.clamp(min=bottom)
    if isinstance(top, T):
        return torch.minimum(x, top)
    return x if top is None else x.clamp(max=top)


def gelu(x: T, *, approximate: str = "none") -> T:
    return F.gelu(x, approximate=approximate)


def hard_sigmoid(x: T, *, alpha: float = 0.2, beta: float = 0.5) -> T:
    return (x * alpha + beta).clamp(0.0, 1.0)


def leaky_relu(x: T, *, alpha: float = 0.01) -> T:
    return F.leaky_relu(x, alpha)


def elu(x: T, *, alpha: float = 1.0) -> T:
    return F.elu(x, alpha)


def celu(x: T, *, alpha: float = 1.0) -> T:
    return F.celu(x, alpha)


def selu(x: T, *, alpha: float = 1.67326319217681884765625, gamma: float = 1.05070102214813232421875) -> T:
    return gamma * F.elu(x, alpha)


def prelu(x: T, slope: T) -> T:
    return torch.where(x < 0, x * slope, x)


def swish(x: T, *, alpha: float = 1.0) -> T:
    return x * torch.sigmoid(x * alpha)


def dropout(x: T, ratio: T | None = None, training: T | None = None, *, seed: int = 0) -> T:
    if training is not None and bool(training):
        raise GraphoptError("Dropout in training mode has no torch form")
    return x


# -- images -----------------------------------------------------------------------------------------------------


def depth_to_space(x: T, *, blocksize: int, mode: str = "DCR") -> T:
    n, c, h, w = x.shape
    b = blocksize
    if mode == "DCR":
        return x.reshape(n, b, b, c // b**2, h, w).permute(0, 3, 4, 1, 5, 2).reshape(n, c // b**2, h * b, w * b)
    return F.pixel_shuffle(x, b)


def space_to_depth(x: T, *, blocksize: int) -> T:
    n, c, h, w = x.shape
    b = blocksize
    return x.reshape(n, c, h // b, b, w // b, b).permute(0, 3, 5, 1, 2, 4).reshape(n, c * b**2, h // b, w // b)


def resize(
    x: T,
    roi: T | None = None,
    scales: T | None = None,
    sizes: T | None = None,
    *,
    mode: str = "nearest",
    coordinate_transformation_mode: str = "half_pixel",
    nearest_mode: str = "round_prefer_floor",
    cubic_coeff_a: float = -0.75,
    exclude_outside: int = 0,
    extrapolation_value: float = 0.0,
    antialias: int = 0,
    keep_aspect_ratio_policy: str = "stretch",
    axes: Sequence[int] | None = None,
) -> T:
    """Resize axis by axis, by the coordinate formulas of the ONNX specification."""
    if mode == "cubic" or antialias or keep_aspect_ratio_policy != "stretch":
        raise GraphoptError("Resize with mode=cubic, antialias or a kept aspect ratio has no torch form")
    dims = list(axes) if axes is not None else list(range(x.dim()))
    by_size = sizes is not None and sizes.numel() > 0
    given = sizes if by_size else scales
    assert given is not None
    for dim, wanted in zip(dims, given.tolist(), strict=True):
        length = x.shape[dim]
        size = int(wanted) if by_size else math.floor(length * wanted)
        scale = size / length if by_size else wanted
        if size == length and scale == 1:
            continue
        place = _source(torch.arange(size, dtype=torch.float32), length, size, scale, coordinate_transformation_mode)
        if mode == "nearest":
            x = x.index_select(dim, _nearest(place, nearest_mode).clamp(0, length - 1))
        else:
            x = _between(x, dim, place.clamp(0, length - 1))
    return x


def _source(out: T, length: int, size: int, scale: float, mode: str) -> T:
    if mode == "asymmetric":
        return out / scale
    if mode == "align_corners":
        return out * ((length - 1) / (size - 1)) if size > 1 else torch.zeros_like(out)
    if mode == "half_pixel" or (mode == "pytorch_half_pixel" and size > 1):
        return (out + 0.5) / scale - 0.5
    if mode == "pytorch_half_pixel":
        return torch.zeros_like(out)
    raise GraphoptError(f"Resize with coordinate_transformation_mode={mode} has no torch form")


def _nearest(place: T, mode: str) -> T:
    rounded = {
        "floor": place.floor(),
        "ceil": place.ceil(),
        "round_prefer_floor": (place - 0.5).ceil(),
        "round_prefer_ceil": (place + 0.5).floor(),
    }[mode]
    return rounded.to(torch.int64)


def _between(x: T, dim: int, place: T) -> T:
    low = place.floor().to(torch.int64)
    high = (low + 1).clamp(max=x.shape[dim] - 1)
    weight = (place - low).to(x.dtype).reshape([-1] + [1] * (x.dim() - 1 - dim % x.dim()))
    return x.index_select(dim, low) * (1 - weight) + x.index_select(dim, high) * weight


OPS: dict[str, Callable[..., Any]] = {
    "Conv": conv, "ConvTranspose": conv_transpose, "MaxPool": max_pool, "AveragePool": average_pool, "Pad": pad,
    "GlobalAveragePool": global_average_pool, "GlobalMaxPool": global_max_pool,
    "BatchNormalization": batch_normalization, "LayerNormalization": layer_normalization,
    "RMSNormalization": rms_normalization, "InstanceNormalization": instance_normalization,
    "GroupNormalization": group_normalization, "LpNormalization": lp_normalization,
    "Softmax": _softmax(torch.softmax, -1), "LogSoftmax": _softmax(torch.log_softmax, -1),
    "Relu": torch.relu, "Sigmoid": torch.sigmoid, "Tanh": torch.tanh, "Clip": clip, "Gelu": gelu,
    "HardSigmoid": hard_sigmoid, "HardSwish": F.hardswish, "LeakyRelu": leaky_relu, "Elu": elu, "Celu": celu,
    "Selu": selu, "PRelu": prelu, "Swish": swish, "Mish": F.mish, "Softplus": F.softplus, "Softsign": F.softsign,
    "Dropout": dropout, "DepthToSpace": depth_to_space, "SpaceToDepth": space_to_depth, "Resize": resize,
}  # fmt: skip
