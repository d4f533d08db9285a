"""Opening `.pt2` files without trusting them: torch.export.load unpickles, evaluates text and looks up callables.

Every member is checked, and a clean copy of what passed is what torch gets to see. Not here: export to ONNX.
"""

from __future__ import annotations

import ast
import io
import json
import re
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from graphopt.errors import GraphoptError

_MODEL = re.compile(r"models/model\.json")
# All that torch.export.save writes for plain tensors; extra files of the user are left out of the copy.
_MEMBERS = re.compile(
    r"models/model\.json|archive_format|archive_version|byteorder|\.data/(version|serialization_id|\.?\w+)"
    r"|data/(weights|constants)/(weight|tensor)_\d+|data/(weights|constants)/model_(weights|constants)_config\.json"
    r"|data/sample_inputs/model\.pt"
)
_SKIPPED = re.compile(r"extra/.*")
_JSON_LIMIT = 1 << 30

_NAMESPACES = "aten|prims|prim|higher_order|quantized_decomposed|quantized|torchvision|torchaudio|onnx|onnx_symbolic"
_TARGET = re.compile(rf"torch\.ops\.(?:{_NAMESPACES})\.(?!__)\w+(?:\.(?!__)\w+)?|math\.(?!_)\w+|torch\._?sym_\w+")
# aten ops that open files.
_FILE_OPS = re.compile(r"torch\.ops\.aten\.(from_file|save|load)\b.*")
_OPERATORS = re.compile(
    r"_operator\.(add|sub|mul|floordiv|truediv|mod|neg|pos|pow|abs|eq|ne|lt|le|gt|ge|and_|or_|xor|not_|invert"
    r"|lshift|rshift|getitem|index)"
)
_SYMBOL = re.compile(r"[a-z]+\d+")
_FUNCTIONS = re.compile(
    r"Symbol|Integer|Float|Rational|Add|Mul|Pow|Mod|Max|Min|Eq|Ne|Equality|Unequality|GreaterThan|LessThan"
    r"|StrictGreaterThan|StrictLessThan|And|Or|Not|Abs|floor|ceiling|true|false|FloorDiv|ModularIndexing|Where|PythonMod"
    r"|CleanDiv|CeilToInt|FloorToInt|CeilDiv|LShift|RShift|PowByNatural|FloatPow|FloatTrueDiv|IntTrueDiv"
    r"|IsNonOverlappingAndDenseIndicator|TruncToFloat|TruncToInt|RoundToInt|RoundDecimal|ToFloat|Identity"
)
_NODES = (
    *(ast.Expression, ast.Call, ast.keyword, ast.Name, ast.Load, ast.Constant, ast.BinOp, ast.UnaryOp, ast.BoolOp),
    *(ast.Compare, ast.operator, ast.unaryop, ast.boolop, ast.cmpop),
)


def load_exported(path: Path) -> Any:
    """Open a `.pt2` file as a torch.export.ExportedProgram.

    Raises:
        GraphoptError: missing, no archive, refused for what it holds (the message says which member), or unreadable
            for this torch.
    """
    with tempfile.TemporaryDirectory(prefix="graphopt-pt2-") as folder:
        clean = Path(folder) / "model.pt2"
        try:
            with zipfile.ZipFile(path) as archive:
                _copy_checked(archive, clean, path)
        except FileNotFoundError:
            raise GraphoptError(f"{path}: there is no such file") from None
        except (zipfile.BadZipFile, EOFError, NotImplementedError) as error:
            raise GraphoptError(f"{path}: not an archive written by torch.export.save ({error})") from None
        except OSError as error:
            raise GraphoptError(f"{path}: {error.strerror or error}") from None
        return _open(clean, path)


def _open(clean: Path, path: Path) -> Any:
    import torch

    try:
        return torch.export.load(clean)
    except Exception as error:  # the deserializer meets a stranger's graph; whatever it says, the file is at fault
        text = " ".join(str(error).split())[:300]
        what = f"torch {torch.__version__} cannot read this program: {type(error).__name__}"
        raise GraphoptError(f"{path}: {what}: {text}") from None


def _copy_checked(archive: zipfile.ZipFile, clean: Path, path: Path) -> None:
    members = archive.infolist()
    names = [member.filename for member in members]
    # Two readers may see different members where a name stands twice.
    if len(set(names)) != len(names):
        raise GraphoptError(f"{path}: refused: a member stands in it twice")
    roots = {name.partition("/")[0] for name in names}
    if len(roots) != 1 or not any(_MODEL.fullmatch(name.partition("/")[2]) for name in names):
        raise GraphoptError(f"{path}: not an archive written by torch.export.save of torch 2.8 or newer")
    root = roots.pop()
    with zipfile.ZipFile(clean, "w", zipfile.ZIP_STORED, allowZip64=True) as out:
        for member in members:
            inner = member.filename[len(root) + 1 :]
            if _SKIPPED.fullmatch(inner):
                continue
            if not _MEMBERS.fullmatch(inner):
                what = f"{inner!r} may hold code ({_why(inner)})"
                raise GraphoptError(f"{path}: refused: {what}; save the program again from plain tensors")
            with archive.open(member) as source:
                if inner.startswith(("data/weights/", "data/constants/")) and not inner.endswith(".json"):
                    _copy(source, out, f"model/{inner}")
                    continue
                if member.file_size > _JSON_LIMIT:
                    raise GraphoptError(f"{path}: {inner!r} has {member.file_size} bytes; the limit is {_JSON_LIMIT}")
                out.writestr(f"model/{inner}", _checked(inner, source.read(), path))


def _why(inner: str) -> str:
    if inner.startswith("data/aotinductor"):
        return "compiled libraries"
    return "pickled objects" if inner.startswith("data/") else "not written by torch.export.save"


def _copy(source: Any, out: zipfile.ZipFile, name: str) -> None:
    with out.open(name, "w", force_zip64=True) as target:
        while piece := source.read(16 << 20):
            target.write(piece)


def _checked(inner: str, data: bytes, path: Path) -> bytes:
    if inner == "data/sample_inputs/model.pt":
        _check_sample_inputs(data, path)
        return data
    if not inner.endswith(".json"):
        return data
    try:
        tree = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise GraphoptError(f"{path}: {inner!r} is not JSON ({error})") from None
    if _MODEL.fullmatch(inner) and isinstance(tree, dict):
        tree["guards_code"] = []  # Python source that would check inputs at run time; ONNX has no place for it
    try:
        _check(tree, path, inner)
    except RecursionError:
        raise GraphoptError(f"{path}: {inner!r} is nested too deep") from None
    return json.dumps(tree).encode()


def _check_sample_inputs(data: bytes, path: Path) -> None:
    import torch

    if not data:
        return
    try:
        torch.load(io.BytesIO(data), weights_only=True)
    except Exception:  # torch falls back to full unpickling there, so anything else must not reach it
        raise GraphoptError(
            f"{path}: refused: its example inputs are no plain tensors, and loading them could run code"
        ) from None


def _check(tree: Any, path: Path, inner: str) -> None:
    """Walk JSON, and JSON inside its strings, for what the deserializer would evaluate, import or look up."""
    if isinstance(tree, list):
        for item in tree:
            _check(item, path, inner)
    elif isinstance(tree, str):
        if tree.lstrip()[:1] in ("{", "["):
            try:
                nested = json.loads(tree)
            except ValueError:
                return
            _check(nested, path, inner)
    elif isinstance(tree, dict):
        _check_object(tree, path, inner)
        for item in tree.values():
            _check(item, path, inner)


def _check_object(tree: dict[str, Any], path: Path, inner: str) -> None:
    if tree.get("use_pickle"):
        raise GraphoptError(f"{path}: refused: {inner!r} says that a tensor is pickled, and unpickling could run code")
    if "__enum__" in tree or tree.get("type") == "collections.defaultdict":
        raise GraphoptError(f"{path}: refused: the structure of its inputs names a Python module to import")
    if "as_custom_obj" in tree or "custom_obj" in tree:
        raise GraphoptError(f"{path}: refused: the program holds a custom object")
    for key in ("target", "as_operator"):
        target = tree.get(key)
        if isinstance(target, str) and inner.startswith("models/") and not _known_target(target, tree, key):
            raise GraphoptError(f"{path}: refused: the program calls {target[:80]!r}, which is no tensor operator")
    text = tree.get("expr_str")
    if text is not None and not _plain_expression(text):
        raise GraphoptError(f"{path}: refused: {str(text)[:80]!r} is no plain expression of dims")


def _known_target(target: str, tree: dict[str, Any], key: str) -> bool:
    if key == "target" and "inputs" not in tree:
        return True  # a buffer's or parameter's name, not a callable
    if _OPERATORS.fullmatch(target):
        return True
    return _TARGET.fullmatch(target) is not None and _FILE_OPS.fullmatch(target) is None


def _plain_expression(text: Any) -> bool:
    """True for arithmetic over dim symbols and numbers with sympy's own function names: sympy would `eval` the text."""
    if not isinstance(text, str) or len(text) > 10_000:
        return False
    try:
        nodes = list(ast.walk(ast.parse(text.strip(), mode="eval")))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    for node in nodes:
        if not isinstance(node, _NODES):
            return False
        if isinstance(node, ast.Call) and not (isinstance(node.func, ast.Name) and _FUNCTIONS.fullmatch(node.func.id)):
            return False
        if isinstance(node, ast.Name) and not _FUNCTIONS.fullmatch(node.id) and not _SYMBOL.fullmatch(node.id):
            return False
        if isinstance(node, ast.Constant) and not _plain_constant(node.value):
            return False
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow) and not _small(node.right):
            return False
    return True


def _plain_constant(value: Any) -> bool:
    if isinstance(value, str):
        return _SYMBOL.fullmatch(value) is not None
    return value is None or (isinstance(value, int | float) and abs(value) <= 1 << 64)


def _small(node: ast.expr) -> bool:
    # A tower of powers would not return.
    return isinstance(node, ast.Constant) and isinstance(node.value, int) and abs(node.value) <= 8
