"""Convolutional networks for the zoo: ResNet, MobileNetV2, DenseNet and ShuffleNetV2, with torchvision's layer names.

Written from the papers; the layer names follow torchvision so that its state dicts load. Imports torch, so this module
is only imported when a model is built. Inputs are float32 [batch, 3, height, width], outputs logits [batch, classes].
"""

# mypy: allow-subclassing-any

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn


def _conv_norm(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(outputs)]


class _Residual(nn.Module):
    """relu(body(x) + shortcut(x)); `widths` are those of the convolutions in the body (two 3x3, or 1x1 3x3 1x1)."""

    def __init__(self, inputs: int, widths: Sequence[int], kernels: Sequence[int], stride: int) -> None:
        super().__init__()
        # The 3x3 convolution carries the stride, as in torchvision ("v1.5").
        strided = kernels.index(3)
        channels = inputs
        for index, (width, kernel) in enumerate(zip(widths, kernels, strict=True)):
            conv, norm = _conv_norm(channels, width, kernel, stride if index == strided else 1)
            self.add_module(f"conv{index + 1}", conv)
            self.add_module(f"bn{index + 1}", norm)
            channels = width
        self.depth = len(widths)
        self.relu = nn.ReLU()
        plain = stride == 1 and inputs == channels
        self.downsample = nn.Identity() if plain else nn.Sequential(*_conv_norm(inputs, channels, 1, stride))

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for index in range(1, self.depth + 1):
            y = self.get_submodule(f"bn{index}")(self.get_submodule(f"conv{index}")(y))
            if index < self.depth:
                y = self.relu(y)
        return self.relu(y + self.downsample(x))


class ResNet(nn.Module):
    """Deep residual network (He et al., 2015): ResNet-18 with `bottleneck=False`, ResNet-50 with `bottleneck=True`."""

    def __init__(self, blocks: Sequence[int], *, bottleneck: bool, classes: int = 1000) -> None:
        super().__init__()
        self.conv1, self.bn1 = _conv_norm(3, 64, 7, 2)
        self.relu = nn.ReLU()
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        channels = 64
        self.stages = len(blocks)
        for stage, count in enumerate(blocks):
            width = 64 << stage
            widths, kernels = ([width, width, 4 * width], [1, 3, 1]) if bottleneck else ([width, width], [3, 3])
            layer = []
            for index in range(count):
                layer.append(_Residual(channels, widths, kernels, 2 if stage and not index else 1))
                channels = widths[-1]
            self.add_module(f"layer{stage + 1}", nn.Sequential(*layer))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for stage in range(self.stages):
            x = self.get_submodule(f"layer{stage + 1}")(x)
        return self.fc(torch.flatten(self.avgpool(x), 1))


class _InvertedResidual(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int, expand: int) -> None:
        super().__init__()
        hidden = inputs * expand
        layers: list[nn.Module] = []
        if expand != 1:
            layers.append(nn.Sequential(*_conv_norm(inputs, hidden, 1), nn.ReLU6()))
        layers.append(nn.Sequential(*_conv_norm(hidden, hidden, 3, stride, groups=hidden), nn.ReLU6()))
        layers += _conv_norm(hidden, outputs, 1)
        self.conv = nn.Sequential(*layers)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.residual else self.conv(x)


class MobileNetV2(nn.Module):
    """MobileNetV2 (Sandler et al., 2018), width 1.0; takes the state dict of torchvision's mobilenet_v2."""

    # Expansion, output channels, blocks, stride of the first block: table 2 of the paper.
    STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))

    def __init__(self, classes: int = 1000) -> None:
        super().__init__()
        features: list[nn.Module] = [nn.Sequential(*_conv_norm(3, 32, 3, 2), nn.ReLU6())]
        channels = 32
        for expand, outputs, count, stride in self.STAGES:
            for index in range(count):
                features.append(_InvertedResidual(channels, outputs, stride if index == 0 else 1, expand))
                channels = outputs
        features.append(nn.Sequential(*_conv_norm(channels, 1280, 1), nn.ReLU6()))
        self.features = nn.Sequential(*features)
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(1280, classes))

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.adaptive_avg_pool2d(self.features(x), 1)
        return self.classifier(torch.flatten(x, 1))


class _DenseLayer(nn.Module):
    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, 4 * growth, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(4 * growth)
        self.conv2 = nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)
        self.relu = nn.ReLU()

    def forward(self, parts: list[Tensor]) -> Tensor:
        y = self.conv1(self.relu(self.norm1(torch.cat(parts, 1))))
        return self.conv2(self.relu(self.norm2(y)))


class _DenseBlock(nn.ModuleDict):
    def __init__(self, inputs: int, growth: int, count: int) -> None:
        super().__init__({f"denselayer{i + 1}": _DenseLayer(inputs + i * growth, growth) for i in range(count)})

    def forward(self, x: Tensor) -> Tensor:
        parts = [x]
        for layer in self.values():
            parts.append(layer(parts))
        return torch.cat(parts, 1)


class DenseNet(nn.Module):
    """DenseNet-BC (Huang et al., 2016); the defaults are DenseNet-121."""

    def __init__(self, blocks: Sequence[int] = (6, 12, 24, 16), growth: int = 32, classes: int = 1000) -> None:
        super().__init__()
        channels = 2 * growth
        conv, norm = _conv_norm(3, channels, 7, 2)
        layers: list[tuple[str, nn.Module]] = [("conv0", conv), ("norm0", norm), ("relu0", nn.ReLU())]
        layers.append(("pool0", nn.MaxPool2d(3, 2, 1)))
        for index, count in enumerate(blocks, start=1):
            layers.append((f"denseblock{index}", _DenseBlock(channels, growth, count)))
            channels += count * growth
            if index < len(blocks):
                shrink = nn.Conv2d(channels, channels // 2, 1, bias=False)
                parts = [nn.BatchNorm2d(channels), nn.ReLU(), shrink, nn.AvgPool2d(2, 2)]
                layers.append((f"transition{index}", nn.Sequential(*parts)))
                channels //= 2
        layers.append(("norm5", nn.BatchNorm2d(channels)))
        self.features = nn.Sequential(OrderedDict(layers))
        self.classifier = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.adaptive_avg_pool2d(nn.functional.relu(self.features(x)), 1)
        return self.classifier(torch.flatten(x, 1))


def _shuffle(x: Tensor) -> Tensor:
    """Interleave the two halves of the channels."""
    batch, channels, height, width = x.shape
    return x.view(batch, 2, channels // 2, height, width).transpose(1, 2).reshape(batch, channels, height, width)


class _ShuffleUnit(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        half = outputs // 2
        entering = inputs if stride > 1 else half
        self.branch1 = nn.Sequential()
        if stride > 1:
            self.branch1 = nn.Sequential(
                *_conv_norm(inputs, inputs, 3, stride, groups=inputs), *_conv_norm(inputs, half, 1), nn.ReLU()
            )
        self.branch2 = nn.Sequential(
            *_conv_norm(entering, half, 1),
            nn.ReLU(),
            *_conv_norm(half, half, 3, stride, groups=half),
            *_conv_norm(half, half, 1),
            nn.ReLU(),
        )
        self.split = stride == 1

    def forward(self, x: Tensor) -> Tensor:
        left, right = x.chunk(2, dim=1) if self.split else (self.branch1(x), x)
        return _shuffle(torch.cat((left, self.branch2(right)), 1))


class ShuffleNetV2(nn.Module):
    """ShuffleNetV2 1.0x (Ma et al., 2018)."""

    def __init__(self, classes: int = 1000) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(*_conv_norm(3, 24, 3, 2), nn.ReLU())
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        channels = 24
        for stage, (outputs, count) in enumerate(((116, 4), (232, 8), (464, 4)), start=2):
            units = [_ShuffleUnit(channels, outputs, 2)]
            units += [_ShuffleUnit(outputs, outputs, 1) for _ in range(count - 1)]
            self.add_module(f"stage{stage}", nn.Sequential(*units))
            channels = outputs
        self.conv5 = nn.Sequential(*_conv_norm(channels, 1024, 1), nn.ReLU())
        self.fc = nn.Linear(1024, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.conv1(x))
        for stage in (2, 3, 4):
            x = self.get_submodule(f"stage{stage}")(x)
        return self.fc(self.conv5(x).mean((2, 3)))


def settle_norms(model: nn.Module, example: Tensor) -> None:
    """Give every batch norm a random scale and shift, and the statistics that it sees on `example`.

    With its initial statistics (0 and 1) a batch norm would be nearly an identity, and deep random networks overflow.
    """
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.normal_(norm.bias, 0.0, 0.2)
        # momentum None means the plain average: after one batch, that batch's own statistics.
        norm.momentum = None
    model.train()
    with torch.no_grad():
        model(example)
    model.eval()
