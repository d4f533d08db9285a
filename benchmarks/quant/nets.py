"""Four small networks for Fashion-MNIST: a plain CNN, a depthwise-separable net, a ViT and a ResNet.

Imports torch. Inputs are float32 [batch, 1, 28, 28], outputs logits [batch, 10]; training is in training.py.
"""

# mypy: allow-subclassing-any

from __future__ import annotations

import torch
from torch import Tensor, nn

CLASSES = 10


def conv_norm(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(outputs)]


class _Pooled(nn.Module):
    """features, mean over the image, one linear layer."""

    def __init__(self, features: nn.Module, channels: int) -> None:
        super().__init__()
        self.features = features
        self.classifier = nn.Linear(channels, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).mean((2, 3)))


def plain_cnn() -> nn.Module:
    """Six 3x3 convolutions in pairs of 16, 32 and 64 channels, max pooling between the pairs."""
    layers: list[nn.Module] = []
    channels = 1
    for width in (16, 32, 64):
        for _ in range(2):
            layers += [*conv_norm(channels, width), nn.ReLU()]
            channels = width
        if width < 64:
            layers.append(nn.MaxPool2d(2))
    return _Pooled(nn.Sequential(*layers), channels)


def depthwise() -> nn.Module:
    """MobileNetV1 (Howard et al., 2017) in small: 3x3 depthwise and 1x1 convolutions, ReLU6 after each."""
    layers: list[nn.Module] = [*conv_norm(1, 16), nn.ReLU6()]
    channels = 16
    for width, stride in ((32, 2), (32, 1), (64, 2), (64, 1), (128, 2), (128, 1)):
        layers += [*conv_norm(channels, channels, 3, stride, groups=channels), nn.ReLU6()]
        layers += [*conv_norm(channels, width, 1), nn.ReLU6()]
        channels = width
    return _Pooled(nn.Sequential(*layers), channels)


class _Residual(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        body = [*conv_norm(inputs, outputs, 3, stride), nn.ReLU(), *conv_norm(outputs, outputs)]
        self.body = nn.Sequential(*body)
        plain = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if plain else nn.Sequential(*conv_norm(inputs, outputs, 1, stride))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(x) + self.shortcut(x))


def resnet() -> nn.Module:
    """ResNet-14 (He et al., 2015, section 4.2): two blocks each of 16, 32 and 64 channels."""
    layers: list[nn.Module] = [*conv_norm(1, 16), nn.ReLU()]
    channels = 16
    for width in (16, 32, 64):
        for index in range(2):
            layers.append(_Residual(channels, width, 2 if width > 16 and index == 0 else 1))
            channels = width
    return _Pooled(nn.Sequential(*layers), channels)


class _Block(nn.Module):
    """One pre-norm transformer layer; x float32 [batch, tokens, width]."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        _, tokens, width = x.shape
        q, k, v = (
            part.reshape(-1, tokens, self.heads, width // self.heads).transpose(1, 2)
            for part in self.qkv(self.norm1(x)).split(width, dim=-1)
        )
        scores = (q @ k.transpose(2, 3)) * (width // self.heads) ** -0.5
        mixed = (scores.softmax(-1) @ v).transpose(1, 2).reshape(-1, tokens, width)
        x = x + self.project(mixed)
        return x + self.mlp(self.norm2(x))


class VisionTransformer(nn.Module):
    """ViT (Dosovitskiy et al., 2020) on 4x4 patches, mean over the 49 tokens instead of a class token."""

    def __init__(self, width: int = 64, depth: int = 4, heads: int = 4, patch: int = 4) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, patch, patch)
        self.position = nn.Parameter(torch.randn(1, (28 // patch) ** 2, width) * 0.02)
        self.blocks = nn.Sequential(*(_Block(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.classifier = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2) + self.position
        return self.classifier(self.norm(self.blocks(tokens)).mean(1))
