"""SessionSettings: the JSON round trip, refusals, and that the runtime gets them."""

from __future__ import annotations

import json

import pytest

from graphopt.errors import GraphoptError
from graphopt.targets.onnxruntime.session import session_options
from graphopt.targets.onnxruntime.settings import SessionSettings


def test_json_round_trip() -> None:
    settings = SessionSettings(
        threads=2,
        optimization_level="basic",
        disabled_optimizers=("ConstantFolding",),
        providers=("CUDAExecutionProvider", "CPUExecutionProvider"),
        provider_options=(("device_id", "1"),),
        config=(("session.x", "1"),),
    )
    assert SessionSettings.from_json(json.loads(json.dumps(settings.to_json()))) == settings
    assert SessionSettings.from_json({}) == SessionSettings()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"thread": 2}, "no field 'thread'; did you mean 'threads'"),
        ({"threads": "2"}, "threads='2' is not of type int"),
        ({"threads": True}, "threads=True is not of type int"),
        ({"providers": "CPUExecutionProvider"}, "is not a list"),
        ({"config": ["a"]}, "is not an object"),
        ({"optimization_level": "alle"}, "did you mean 'all'"),
        ({"threads": -1}, "is negative"),
        ({"providers": []}, "at least one execution provider"),
    ],
)
def test_refusals(data: dict[str, object], message: str) -> None:
    with pytest.raises(GraphoptError, match=message):
        SessionSettings.from_json(data)


def test_options_reach_the_runtime() -> None:
    options = session_options(SessionSettings(threads=3, arena=False, prepacking=False, force_spinning_stop=True))
    assert options.intra_op_num_threads == 3
    assert not options.enable_cpu_mem_arena
    assert options.get_session_config_entry("session.disable_prepacking") == "1"
    assert options.get_session_config_entry("session.force_spinning_stop") == "1"
    assert options.get_session_config_entry("session.set_denormal_as_zero") == "0"


def test_reference_settings_turn_everything_off() -> None:
    plain = SessionSettings(threads=8).reference()
    assert (plain.threads, plain.optimization_level, plain.prepacking) == (1, "disable_all", False)
