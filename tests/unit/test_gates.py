"""The text of gates, and what meets them."""

from __future__ import annotations

import math

import pytest

from graphopt.errors import GateError, GraphoptError
from graphopt.gates import Gate, Outcome, parse_gate, parse_gates, require
from graphopt.quantization.metrics import Interval


@pytest.mark.parametrize(
    ("text", "gate"),
    [
        ("metric>=0.99x", Gate("metric", ">=", 0.99, True)),
        (" metric >= 75% ", Gate("metric", ">=", 0.75, False)),
        ("metric<=1.01x", Gate("metric", "<=", 1.01, True)),
        ("latency<=1.0x", Gate("latency", "<=", 1.0, True)),
        ("latency<=2.5ms", Gate("latency", "<=", 2.5, False)),
        ("size<=0.3x", Gate("size", "<=", 0.3, True)),
        ("size<=4MB", Gate("size", "<=", 4e6, False)),
        ("top1>=.98", Gate("top1", ">=", 0.98, False)),
        ("Top-1>=98%", Gate("top1", ">=", 0.98, False)),
        ("cosine>=0.999", Gate("cosine", ">=", 0.999, False)),
        ("sqnr>=20dB", Gate("sqnr", ">=", 20.0, False)),
        ("max_abs<=1e-2", Gate("max-abs", "<=", 0.01, False)),
        ("cosine>=0.9999999", Gate("cosine", ">=", 0.9999999, False)),
        ("size<=1234567B", Gate("size", "<=", 1234567, False)),
    ],
)
def test_text(text: str, gate: Gate) -> None:
    assert parse_gate(text) == gate
    assert parse_gate(str(gate)) == gate


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("metric", "is not name>=limit"),
        ("metric>0.9", "is not name>=limit"),
        ("metric>=", "is not name>=limit"),
        ("metric>=nan", "is not name>=limit"),
        ("latncy<=1x", "did you mean 'latency'"),
        ("cosine>=0.99x", "compares with the float model already"),
        ("latency<=1", "cannot be given in 'a bare number'"),
        ("latency>=1x", "less is better for latency"),
        ("cosine<=0.9", "more is better for cosine"),
        ("size<=3ms", "cannot be given in 'ms'"),
        ("top1>=2", "top1 is between 0 and 1; write for example top1>=0.98"),
        ("top1>=120%", "top1 is between 0 and 1"),
        ("cosine>=1.01", "cosine is between -1 and 1; write for example cosine>=0.999"),
        ("latency<=-1x", "latency is at least 0"),
        ("max-abs<=-1", "max-abs is at least 0"),
    ],
)
def test_text_that_is_no_gate(text: str, message: str) -> None:
    with pytest.raises(GraphoptError, match=message) as caught:
        parse_gate(text)
    assert caught.value.exit_code == 2


def test_what_is_missing_to_one_is_shown() -> None:
    gate = parse_gate("cosine>=0.9999999")
    with pytest.raises(GateError, match=r"cosine>=0\.9999999 is not met: nearest is cosine 0\.99999985"):
        require([Outcome(gate, 0.99999985)])


def test_several_in_one_text() -> None:
    assert [gate.name for gate in parse_gates(["latency<=1x,size<=0.3x", "cosine>=0.9"])] == [
        "latency",
        "size",
        "cosine",
    ]
    with pytest.raises(GraphoptError, match=r"size<=0\.3x and size<=0\.4x are about the same"):
        parse_gates(["size<=0.3x", "size<=0.4x"])


def test_met() -> None:
    gate = parse_gate("cosine>=0.9")
    assert gate.met(0.9)
    assert not gate.met(0.89)
    assert not gate.met(math.nan)


def test_a_miss_below_the_resolution_of_the_measurement_is_none() -> None:
    gate = parse_gate("latency<=1x")
    assert Outcome(gate, 1.004, resolution=0.005).met
    assert not Outcome(gate, 1.006, resolution=0.005).met
    assert not Outcome(gate, math.nan, resolution=0.005).met
    assert not Outcome(gate, 1.004).met


def test_the_error_shows_what_was_reached() -> None:
    good = Outcome(parse_gate("size<=0.3x"), 0.27)
    bad = Outcome(parse_gate("cosine>=0.999"), 0.9971, Interval(0.9971, 0.9965, 0.9976), "on 64 samples")
    require([good])
    with pytest.raises(GateError) as caught:
        require([good, bad])
    assert caught.value.exit_code == 3
    assert str(caught.value) == (
        "gate cosine>=0.999 is not met: nearest is cosine 0.9971 [0.9965, 0.9976] on 64 samples; "
        "met: size<=0.3x with size 0.27x; nothing was written"
    )
