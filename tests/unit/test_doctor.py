"""`doctor`: what is in conflict on this installation, each with what to do."""

from __future__ import annotations

import pytest

from graphopt import doctor

FINE = {"onnxruntime": "1.31.1", "apache-tvm": "0.27.0.post1", "apache-tvm-ffi": "0.1.14.post1"}


@pytest.mark.parametrize(
    ("found", "problem"),
    [
        (FINE, ""),
        ({**FINE, "onnxruntime-gpu": "1.31.1"}, "uninstall both, then install one"),
        ({}, 'pip install "graphopt[cpu]"'),
        ({"onnxruntime-gpu": "1.31.1"}, ""),
        ({**FINE, "apache-tvm-ffi": "0.1.15.post2"}, "pip install apache-tvm-ffi==0.1.14.post1"),
        ({"onnxruntime": "1.31.1", "apache-tvm-ffi": "0.1.15.post2"}, ""),
    ],
    ids=["fine", "both runtimes", "no runtime", "gpu alone", "wrong ffi", "ffi without tvm"],
)
def test_packages_in_conflict(found: dict[str, str], problem: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_requirements", lambda: [])
    problems = doctor._problems(found)
    assert len(problems) == bool(problem) and all(problem in line for line in problems)


def test_versions_outside_the_requirements_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = ["numpy>=2", "onnx>=99", "absent-package>=1", 'torch>=99; extra == "torch"', 'onnx>=99; extra == "other"']
    monkeypatch.setattr(doctor.importlib.metadata, "requires", lambda name: wanted)
    monkeypatch.setattr(doctor, "_version", {"numpy": "2.4.6", "onnx": "1.23.2", "torch": "2.13.0"}.get)
    assert doctor._requirements() == [
        "onnx 1.23.2 is installed, graphopt wants >=99",
        "torch 2.13.0 is installed, graphopt wants >=99",
    ]


def test_a_machine_without_nvidia_has_no_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    found = doctor.examine()
    assert found["machine"]["gpus"] == [] and found["machine"]["cores"] >= 1
    assert found["targets"]["cpu"] == "can run here"
