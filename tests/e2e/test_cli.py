"""The command line: exit codes, one-line errors, atomic outputs, instant listing, reproducible bytes."""

from __future__ import annotations

import json
import os
import shlex
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import onnx
import pytest

from graphopt.ir.text import from_text
from graphopt.ir.writer import write

MODEL = """<ir_version: 10, opset_import: ["" : 17]>
agraph (float[N,3,8,8] x) => (float[N,4,8,8] y) <float[4,3,3,3] w, float[4] s, float[4] b, float[4] mean, float[4] var>
{ [conv] h = Conv<pads=[1,1,1,1]>(x, w)
  [bn] z = BatchNormalization(h, s, b, mean, var)
  [id] i = Identity(z)
  [relu] y = Relu(i) }"""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "in" / "model.onnx"
    path.parent.mkdir()
    write(from_text(MODEL), path)
    return path


def graphopt(*args: object, cwd: Path | None = None, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "graphopt", *map(str, args)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=300, cwd=cwd, env={**os.environ, **env}, check=False
    )


def test_compile_writes_a_proven_artifact(model: Path, tmp_path: Path) -> None:
    done = graphopt("compile", model, "-o", tmp_path / "out", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["numerics"]["status"] == "passed"
    assert report["effects"]["fuse-conv-bn"] == 1 and report["after"]["nodes"] <= 2
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["numerics"]["status"] == "passed" and manifest["main"] == "model.onnx"
    assert graphopt("verify", tmp_path / "out").returncode == 0
    assert graphopt("verify", model, tmp_path / "out").returncode == 0


def test_the_same_inputs_give_the_same_bytes(model: Path, tmp_path: Path) -> None:
    files = []
    for name in ("a", "b/c"):
        assert graphopt("compile", model, "-o", tmp_path / name, "-q", PYTHONHASHSEED=str(len(name))).returncode == 0
        files.append([(tmp_path / name / file).read_bytes() for file in ("model.onnx", "manifest.json")])
    assert files[0] == files[1]


def test_frozen_accepts_the_same_and_names_what_drifted(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert "no artifact" in graphopt("compile", model, "-o", out, "--frozen").stderr
    assert graphopt("compile", model, "-o", out, "-q").returncode == 0
    before = (out / "manifest.json").read_bytes()
    assert graphopt("compile", model, "-o", out, "-q", "--frozen").returncode == 0
    done = graphopt("compile", model, "-o", out, "-q", "--frozen", "-O", "1")
    assert done.returncode == 4 and "--frozen: " in done.stderr
    write(from_text(MODEL.replace("pads=[1,1,1,1]", "pads=[1,1,1,1], group=1")), model)
    done = graphopt("compile", model, "-o", out, "-q", "--frozen")
    assert done.returncode == 4 and "files: model.onnx: " in done.stderr
    assert (out / "manifest.json").read_bytes() == before


def test_a_target_that_is_not_here_is_compiled_and_says_what_was_not_checked(model: Path, tmp_path: Path) -> None:
    done = graphopt("compile", model, "-o", tmp_path / "out", "--target", "cuda", "--json")
    assert done.returncode == 0, done.stderr
    numerics = json.loads(done.stdout)["numerics"]
    if numerics["status"] == "not-checked":
        assert "compiled, not run on the target" in numerics["reason"] and "it passed on the CPU" in numerics["reason"]
        done = graphopt("compile", model, "-o", tmp_path / "out", "--target", "cuda", "--require-numerics")
        assert done.returncode == 1 and "not checked" in done.stderr


def test_a_full_disk_leaves_nothing_behind(model: Path, tmp_path: Path) -> None:
    """A limit on file size stands for the disk: the write fails half way."""
    write(from_text(MODEL.replace("float[4,3,3,3] w", "float[4,3,3,3] w, float[99999] unused")), model)
    for verb, out in (("opt", "out.onnx"), ("compile", "out")):
        line = f"ulimit -f 64; exec {sys.executable} -m graphopt {verb} {model} -o {out} -p eliminate-identity"
        done = subprocess.run(["bash", "-c", line], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 2 and "cannot write" in done.stderr and "Traceback" not in done.stderr
        assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["opt", "absent.onnx"], 2, "there is no such file"),
        (["opt", "{model}", "-p", "dec"], 2, "did you mean 'dce'?"),
        (["opt", "{model}", "-p", "dce{x=1}"], 2, "has no option 'x'"),
        (["opt", "{model}", "-p", "dce,("], 2, "column 5"),
        (["opt", "{model}", "--target", "cpuu"], 2, "did you mean 'cpu'?"),
        (["opt", "{model}", "--target", "cpu{threds=2}"], 2, "did you mean 'threads'?"),
        (["opt", "{model}", "--input-shapes", "z:1,3,8,8"], 2, "'z'"),
        (["opt", "{model}", "--input-shapes", "x:1,3,8"], 2, "rank"),
        (["opt", "{model}", "--input-shapes", "x:1,3,8,q!"], 2, "neither a number nor a name"),
        (["opt", "{model}", "--input-shapes", "1,3"], 2, "wants name:dims"),
        (["opt", "{model}", "--dim", "M=2"], 2, "'M'"),
        (["opt", "{model}", "--dim", "N=two"], 2, "wants name=number"),
        (["opt", "{model}", "-p", "fuse-matmul-add", "--require-effect"], 3, "fuse-matmul-add"),
        (["opt", "{model}", "--opset", "99"], 2, "99"),
        (["opt", "{model}", "--data", "{model}"], 2, "--data"),
        (["opt"], 2, "give a model: an ONNX file"),
        (["oppt"], 2, "did you mean 'opt'?"),
        (["opt", "{model}", "--frobnicate"], 2, "frobnicate"),
        (["compile", "{model}", "-o", "{model}"], 2, "is a file"),
        (["compile", "{model}", "-o", "{folder}"], 2, "other files in it"),
        (["compile", "{model}", "-o", "/proc/nowhere/out"], 2, "cannot write"),
        (["opt", "{model}", "-o", "/proc/nowhere/out.onnx"], 2, "cannot write"),
        (["opt", "{model}", "--load", "absent.py"], 2, "there is no such file"),
        (["explain", "{model}", "dce,cse"], 2, "wants one pass"),
        (["diff", "{model}", "absent"], 2, "there is no such file"),
        (["bench", "absent.onnx"], 2, "there is no such file"),
        (["models", "path", "ppocr-clss"], 2, "did you mean 'ppocr-cls'?"),
        (["opt", "{model}", "--input-shapes", "x:99999999999999999999,3,8,8"], 2, "sizes are 0 to 9223372036854775807"),
        (["opt", "{model}", "--dim", "N=99999999999999999999999"], 2, "sizes are 0 to 9223372036854775807"),
        (["opt", "{model}", "--dim", "N=\N{SUPERSCRIPT TWO}"], 2, "wants name=number"),
        (["opt", "{model}", "--input-shapes", "x:\N{ARABIC-INDIC DIGIT TWO},3,8,8"], 2, "neither a number nor a name"),
        (["opt", "{model}", "--max-growth", "nan"], 2, "nan is not a number"),
        (["opt", "{model}", "--max-memory", "9" * 400], 2, "wants a number of bytes"),
        (["run", "{model}", "--input-shapes", "x:1000000000000,3,8,8"], 2, "give smaller sizes"),
        (["run", "{model}", "-o", "{model}/x.npz"], 2, "cannot write"),
        (["run", "{model}", "--seed", "-1"], 2, "--seed"),
        (["bench", "{model}", "--warmup", "-5"], 2, "--warmup"),
        (["bench", "{model}", "--duration", "-1"], 2, "--duration"),
        (["bench", "{model}", "--duration", "0"], 2, "--duration"),
        (["bench", "{model}", "--duration", "nan"], 2, "nan is not a number"),
    ],
)
def test_mistakes_get_one_line_and_their_exit_code(
    model: Path, tmp_path: Path, args: list[str], code: int, message: str
) -> None:
    done = graphopt(
        *[arg.replace("{model}", str(model)).replace("{folder}", str(model.parent)) for arg in args], cwd=tmp_path
    )
    assert done.returncode == code, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr and "a bug in graphopt" not in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"], "nothing is left behind"


PLUGIN = '''
from dataclasses import dataclass
from typing import ClassVar
from graphopt import NodePass

@dataclass(frozen=True)
class Wrong(NodePass):
    """Relu(x) -> LeakyRelu(x): wrong on purpose"""
    name: ClassVar[str] = "wrong"
    ops: ClassVar[tuple[str, ...]] = ("Relu",)

    def rewrite_node(self, op, m, node):
        return op.LeakyRelu(node.inputs[0], alpha=0.1)

@dataclass(frozen=True)
class Crash(NodePass):
    """Relu -> a bug"""
    name: ClassVar[str] = "crash"
    ops: ClassVar[tuple[str, ...]] = ("Relu",)

    def rewrite_node(self, op, m, node):
        raise RuntimeError("boom")
'''


@pytest.fixture
def plugin(tmp_path: Path) -> Path:
    path = tmp_path / "plug.py"
    path.write_text(PLUGIN)
    return path


def test_wrong_numbers_exit_1_and_write_nothing(model: Path, plugin: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    done = graphopt("opt", model, "-o", out, "--load", plugin, "-p", "dce,wrong", cwd=tmp_path)
    assert done.returncode == 1 and "numerics failed" in done.stderr and not out.exists()


def test_bisect_names_pass_and_node(model: Path, plugin: Path, tmp_path: Path) -> None:
    done = graphopt(
        "bisect", model, "--load", plugin, "-p", "eliminate-identity,fuse-conv-bn,wrong", "--json", cwd=tmp_path
    )
    assert done.returncode == 1, done.stderr
    blame = json.loads(done.stdout)
    assert blame["culprit"] == "rewrite"
    assert (blame["rewrite"]["pass_name"], blame["rewrite"]["site"]) == ("wrong", "relu")


def test_a_bug_in_a_pass_exits_70_and_leaves_a_reproducer(model: Path, plugin: Path, tmp_path: Path) -> None:
    done = graphopt("opt", model, "--load", plugin, "-p", "eliminate-identity,crash", cwd=tmp_path)
    assert done.returncode == 70 and "pass 'crash' failed at relu" in done.stderr and "Traceback" not in done.stderr
    repro = json.loads((tmp_path / "repro" / "repro.json").read_text())
    assert repro["pass"] == "crash" and "boom" in repro["error"]
    again = graphopt(*shlex.split(repro["replay"])[1:], cwd=tmp_path / "repro")
    assert again.returncode == 70 and "pass 'crash' failed at relu" in again.stderr


def test_a_reproducer_keeps_what_the_pass_depends_on(model: Path, plugin: Path, tmp_path: Path) -> None:
    flags = [
        "--load",
        "plug.py",
        "--target",
        "cpu{threads=1}",
        "--max-growth",
        "2",
        "--dim",
        "N=3",
        "--numerics",
        "off",
    ]
    done = graphopt("opt", model, "-p", "crash{}", *flags, "--calibration-data", "random", cwd=tmp_path)
    assert done.returncode == 70, done.stderr
    replay = json.loads((tmp_path / "repro" / "repro.json").read_text())["replay"]
    for part in (
        f"--load {plugin}",
        "'cpu{threads=1}'",
        "--max-growth 2.0",
        "--numerics off",
        "--calibration-data random",
    ):
        assert part in replay
    assert "--dim" not in replay  # it is bound in the model
    assert onnx.load(tmp_path / "repro" / "model.onnx").graph.input[0].type.tensor_type.shape.dim[0].dim_value == 3
    again = graphopt(*shlex.split(replay)[1:], cwd=tmp_path / "repro")
    assert again.returncode == 70, again.stderr


def test_inputs_that_no_memory_holds_leave_opt_unchecked(model: Path, tmp_path: Path) -> None:
    write(from_text(MODEL.replace("N,3,8,8", "1000000000000,3,8,8").replace("N,4,8,8", "1000000000000,4,8,8")), model)
    done = graphopt("opt", model, "-o", tmp_path / "out.onnx", "--json")
    assert done.returncode == 0, done.stderr
    numerics = json.loads(done.stdout)["numerics"]
    assert numerics["status"] == "not-checked" and "give smaller sizes" in numerics["reason"]


def test_remarks_are_one_json_record_per_line(model: Path, tmp_path: Path) -> None:
    file = tmp_path / "r.jsonl"
    assert graphopt("opt", model, "-p", "fuse-conv-bn", "--remarks", file, "-q").returncode == 0
    records = [json.loads(line) for line in file.read_text().splitlines()]
    assert {"pass": "fuse-conv-bn", "status": "applied", "site": "bn", "op": "BatchNormalization"}.items() <= records[
        0
    ].items()


def test_remarks_that_cannot_be_written_come_before_any_output(model: Path, tmp_path: Path) -> None:
    (tmp_path / "afile").touch()
    before = sorted(tmp_path.rglob("*"))
    for verb in ("opt", "compile"):
        for place, reason in (("afile/r.jsonl", "Not a directory"), ("no/r.jsonl", "No such file"), ("in", "a folder")):
            done = graphopt(verb, model, "-o", tmp_path / "out", "--remarks", tmp_path / place)
            assert done.returncode == 2 and reason in done.stderr and done.stderr.count("\n") == 1, done.stderr
            assert sorted(tmp_path.rglob("*")) == before


def test_remarks_may_go_to_a_pipe(model: Path, tmp_path: Path) -> None:
    command = f"{sys.executable} -m graphopt opt {model} -p fuse-conv-bn -q --remarks"
    line = f"{command} >(cat > got; touch end); while [ ! -e end ]; do sleep 0.1; done"
    subprocess.run(["bash", "-c", line], check=True, timeout=60, cwd=tmp_path)
    assert json.loads((tmp_path / "got").read_text().splitlines()[0])["pass"] == "fuse-conv-bn"


def test_what_fails_leaves_no_folder_behind(model: Path, plugin: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    for verb, *flags in (
        ("opt", "--load", plugin, "-p", "wrong"),
        ("compile", "--load", plugin, "-p", "wrong"),
        ("compile", "--gate", "size<=1B"),
    ):
        done = graphopt(verb, model, "-o", tmp_path / "new" / "deep" / "out", *flags, cwd=tmp_path)
        assert done.returncode in (1, 3), done.stderr
        assert sorted(tmp_path.rglob("*")) == before


def test_print_and_dump_ir(model: Path, tmp_path: Path) -> None:
    done = graphopt(
        "opt",
        model,
        "-p",
        "eliminate-identity,dce",
        "--print-ir-after",
        "eliminate-identity",
        "--dump-ir",
        tmp_path / "ir:changed",
    )
    assert "// IR after eliminate-identity (changed)" in done.stderr and done.stdout == ""
    assert [path.name for path in (tmp_path / "ir").iterdir()] == ["001-eliminate-identity.txt"]


def test_interrupting_leaves_the_old_output_alone(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert graphopt("compile", model, "-o", out, "-q").returncode == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    plug = tmp_path / "slow.py"
    plug.write_text(
        PLUGIN.replace('raise RuntimeError("boom")', "import time; print('slow', flush=True); time.sleep(60)")
    )
    command = [
        sys.executable,
        "-m",
        "graphopt",
        "compile",
        str(model),
        "-o",
        str(out),
        "--load",
        str(plug),
        "-p",
        "crash",
    ]
    # A shell in the background ignores the signal, and its children would inherit that.
    process = subprocess.Popen(
        ["env", "--default-signal=INT", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
    )
    assert process.stdout is not None and process.stdout.readline() == "slow\n"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130 and "interrupted" in errors and "Traceback" not in errors
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out", "slow.py"]


def test_interrupting_while_it_imports_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "click.py").write_text("import time; print('importing', flush=True); time.sleep(60)")
    process = subprocess.Popen(
        ["env", "--default-signal=INT", sys.executable, "-m", "graphopt", "passes"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"},
    )
    assert process.stdout is not None and process.stdout.readline() == "importing\n"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130 and errors == "graphopt: interrupted; nothing was written\n"


@pytest.mark.parametrize(
    ("change", "args", "code", "message"),
    [
        ("raise ValueError('two\\nlines')", "passes", 2, "--load plug.py: ValueError: two lines"),
        ("import sys; sys.exit(3)", "passes", 2, "--load plug.py: SystemExit: 3"),
        ("BOOM = ValueError('two\\nlines')", "crash", 70, "(Relu): ValueError: two lines"),
        ("BOOM = SystemExit(3)", "crash", 70, "(Relu): SystemExit: 3"),
    ],
)
def test_errors_of_foreign_code_are_one_line(
    model: Path, tmp_path: Path, change: str, args: str, code: int, message: str
) -> None:
    (tmp_path / "plug.py").write_text(PLUGIN.replace('RuntimeError("boom")', "BOOM") + f"\n{change}\n")
    done = graphopt("opt", model, "--load", "plug.py", "-p", args, cwd=tmp_path)
    assert done.returncode == code and message in done.stderr and done.stderr.count("\n") == 1, done.stderr


HEAVY = ("numpy", "onnx", "onnx_ir", "onnxruntime", "torch", "sympy", "networkx", "graphopt.driver")


@pytest.mark.parametrize("args", [["--help"], ["passes"], ["passes", "dce"], ["opt", "--help"]])
def test_listing_imports_nothing_heavy(args: list[str]) -> None:
    code = f"""
import sys
from graphopt.cli import main
try:
    main({args!r})
except SystemExit:
    print([name for name in {HEAVY!r} if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_help_and_passes_are_instant() -> None:
    # An installed graphopt has its bytecode; the first of the runs writes it here.
    cached = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}

    def seconds(command: list[str]) -> float:
        start = time.perf_counter()
        subprocess.run([sys.executable, *command], capture_output=True, check=True, env=cached)
        return time.perf_counter() - start

    # In turns, as the machine's speed changes meanwhile.
    commands = (["-c", "import click"], ["-m", "graphopt", "--help"], ["-m", "graphopt", "passes"])
    rounds = [[seconds(command) for command in commands] for _ in range(15)]
    base, *taken = map(min, zip(*rounds, strict=True))
    for command, best in zip(commands[1:], taken, strict=True):
        told = f"graphopt {command[-1]}: {best:.3f} s, import click: {base:.3f} s"
        assert best <= max(1.5 * base, base + 0.150), told


OUTPUTS = [
    "opt -o",
    "compile -o",
    "run -o",
    "opt --calibration-data random -p quantize-static --save-calibration",
]


@pytest.mark.parametrize("verb", OUTPUTS)
@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_an_output_that_is_no_file_is_refused_and_stays(model: Path, tmp_path: Path, verb: str, kind: str) -> None:
    special = tmp_path / "out"
    try:
        os.mkfifo(special) if kind == "pipe" else os.mknod(special, stat.S_IFCHR | 0o600, os.makedev(1, 3))
    except PermissionError:
        pytest.skip("no nodes of devices can be made here")
    was = special.stat().st_mode
    name, *flags = verb.split()
    done = graphopt(name, model, *flags, special, "--dim", "N=1", cwd=tmp_path)
    assert done.returncode == 2 and f"is a {kind}; " in done.stderr, done.stderr
    assert special.stat().st_mode == was and sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]


def test_an_output_that_is_a_link_is_written_through(model: Path, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    for verb, name in (("opt", "m.onnx"), ("run", "x.npz"), ("compile", "build")):
        link = tmp_path / name
        link.symlink_to(Path("real") / name)  # nothing is there yet
        for _ in range(2):
            done = graphopt(verb, model, "-o", link)
            assert done.returncode == 0, done.stderr
            assert link.is_symlink() and (tmp_path / "real" / name).exists()
    assert sorted(path.name for path in (tmp_path / "real").iterdir()) == ["build", "m.onnx", "x.npz"]
    (tmp_path / "loop").symlink_to("loop")
    done = graphopt("opt", model, "-o", tmp_path / "loop")
    assert done.returncode == 2 and "is a loop of links" in done.stderr
