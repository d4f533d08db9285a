"""Transformer networks for the zoo, from `transformers` configurations, wrapped so that inputs and outputs are tensors.

Imports torch and transformers, so this module is only imported when a model is built. Random weights come from the
seed that the caller set; nothing is downloaded.
"""

# mypy: allow-subclassing-any

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


class _Tokens(nn.Module):
    """input_ids, attention_mask int64 [batch, sequence] -> the first output of an encoder or decoder."""

    def __init__(self, inner: nn.Module, **options: Any) -> None:
        super().__init__()
        self.inner = inner
        self.options = options

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.inner(input_ids=input_ids, attention_mask=attention_mask, **self.options)[0]


class _Pixels(nn.Module):
    """pixel_values float32 [batch, 3, height, width] -> the first output of a vision model."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(pixel_values=x)[0]


class _Cached(nn.Module):
    """A decoder whose key/value cache is explicit: key, value of every layer in; logits and the grown cache out.

    Past keys and values are float32 [batch, kv_heads, past, head_size], in the order key_0, value_0, key_1, ...
    """

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, input_ids: Tensor, attention_mask: Tensor, *past: Tensor) -> tuple[Tensor, ...]:
        cache = _transformers("DynamicCache")(list(zip(past[::2], past[1::2], strict=True)))
        done = self.inner(
            input_ids=input_ids, attention_mask=attention_mask, past_key_values=cache, use_cache=True, return_dict=True
        )
        present = [tensor for layer in done.past_key_values.layers for tensor in (layer.keys, layer.values)]
        return (done.logits, *present)


def _transformers(name: str) -> Any:
    # By name: the library's own type hints do not know the options that its configurations share.
    return getattr(importlib.import_module("transformers"), name)


def minilm(folder: Path) -> nn.Module:
    """The sentence encoder with the real weights of `folder`; last hidden state [batch, sequence, 384]."""
    with _no_progress_bar():
        model = _transformers("BertModel").from_pretrained(str(folder), local_files_only=True, dtype=torch.float32)
    return _Tokens(model)


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    logging = importlib.import_module("transformers.utils.logging")
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def bert_tiny() -> nn.Module:
    """Two layers, 64 wide, 2 heads, 1,000 tokens; last hidden state [batch, sequence, 64]."""
    config = _transformers("BertConfig")(
        vocab_size=1000,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=128,
        max_position_embeddings=128,
    )
    return _Tokens(_transformers("BertModel")(config, add_pooling_layer=False))


def vit_b16() -> nn.Module:
    """ViT-B/16 classifier at 224 x 224; logits [batch, 1000]."""
    return _Pixels(_transformers("ViTForImageClassification")(_transformers("ViTConfig")(num_labels=1000)))


def vit_tiny() -> nn.Module:
    """Two layers, 48 wide, 3 heads, 32 x 32 images in 8 x 8 patches; logits [batch, 10]."""
    config = _transformers("ViTConfig")(
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=96,
        image_size=32,
        patch_size=8,
        num_labels=10,
    )
    return _Pixels(_transformers("ViTForImageClassification")(config))


def convnext_t() -> nn.Module:
    """ConvNeXt-T classifier at 224 x 224; logits [batch, 1000]."""
    return _Pixels(_transformers("ConvNextForImageClassification")(_transformers("ConvNextConfig")(num_labels=1000)))


LLAMA_LAYERS, LLAMA_KV_HEADS, LLAMA_HEAD_SIZE = 4, 2, 32


def _llama() -> nn.Module:
    config = _transformers("LlamaConfig")(
        vocab_size=2048,
        hidden_size=8 * LLAMA_HEAD_SIZE,
        intermediate_size=688,
        num_hidden_layers=LLAMA_LAYERS,
        num_attention_heads=8,
        num_key_value_heads=LLAMA_KV_HEADS,
        max_position_embeddings=1024,
    )
    return _transformers("LlamaForCausalLM")(config)


def llama_tiny() -> nn.Module:
    """A Llama decoder of 4 layers with grouped key/value heads, no cache; logits [batch, sequence, 2048]."""
    return _Tokens(_llama(), use_cache=False)


def llama_tiny_kv() -> nn.Module:
    """The same decoder with its past keys and values as inputs and outputs."""
    return _Cached(_llama())
