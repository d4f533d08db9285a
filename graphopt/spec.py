"""The text form shared by passes and targets: `name{option=value option=[1 2] flag}`.

Lives here: the grammar, the option types, canonical printing. Not here: what the names mean (manager/registry.py).
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
import types
import typing
from dataclasses import dataclass
from typing import Any

from graphopt.errors import GraphoptError, did_you_mean, nearest

_NAME = re.compile(r"[A-Za-z@][\w.\-]*")
_BARE = re.compile(r"[^\s{}\[\](),\"]+")


class SpecError(GraphoptError):
    """The text does not follow the grammar; the message points at the column with a caret."""

    def __init__(self, text: str, column: int, what: str) -> None:
        super().__init__(f"{what} at column {column + 1}\n  {text}\n  {' ' * column}^")
        self.column = column


@dataclass(frozen=True)
class Spec:
    """One name with its options as text; option values are str or a tuple of str."""

    name: str
    options: tuple[tuple[str, str | tuple[str, ...]], ...] = ()

    def __str__(self) -> str:
        if not self.options:
            return self.name
        return f"{self.name}{{{' '.join(f'{key}={_print_value(value)}' for key, value in self.options)}}}"


class Scanner:
    """A cursor over spec text, shared with the pipeline grammar (manager/pipeline.py)."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0

    def skip_space(self) -> None:
        while self.at < len(self.text) and self.text[self.at].isspace():
            self.at += 1

    def peek(self) -> str:
        self.skip_space()
        return self.text[self.at] if self.at < len(self.text) else ""

    def take(self, char: str) -> bool:
        if self.peek() != char:
            return False
        self.at += 1
        return True

    def expect(self, char: str, why: str) -> None:
        if not self.take(char):
            raise self.error(f"expected {char!r} {why}")

    def match(self, pattern: re.Pattern[str], what: str) -> str:
        self.skip_space()
        found = pattern.match(self.text, self.at)
        if not found:
            raise self.error(f"expected {what}")
        self.at = found.end()
        return found.group()

    def error(self, what: str) -> SpecError:
        return SpecError(self.text, self.at, what)

    def spec(self) -> Spec:
        """Parse one `name{...}`."""
        name = self.match(_NAME, "a name")
        options: list[tuple[str, str | tuple[str, ...]]] = []
        if self.take("{"):
            while not self.take("}"):
                if not self.peek():
                    raise self.error("missing '}'")
                key = self.match(re.compile(r"[A-Za-z_][\w\-]*"), "an option name or '}'").replace("-", "_")
                if any(key == seen for seen, _ in options):
                    raise self.error(f"option {key!r} is given twice")
                options.append((key, self._value() if self.take("=") else "true"))
                self.take(",")
        return Spec(name, tuple(options))

    def _value(self) -> str | tuple[str, ...]:
        if not self.take("["):
            return self._scalar()
        items: list[str] = []
        while not self.take("]"):
            if not self.peek():
                raise self.error("missing ']'")
            items.append(self._scalar())
            self.take(",")
        return tuple(items)

    def _scalar(self) -> str:
        if self.peek() != '"':
            return self.match(_BARE, "a value")
        self.at += 1
        out = []
        while self.at < len(self.text) and self.text[self.at] != '"':
            if self.text[self.at] == "\\" and self.at + 1 < len(self.text):
                self.at += 1
            out.append(self.text[self.at])
            self.at += 1
        self.expect('"', "to close the string")
        return "".join(out)


def parse_spec(text: str) -> Spec:
    """Parse `name{key=value ...}`.

    Raises:
        SpecError: with a caret under the offending column.
    """
    scanner = Scanner(text)
    spec = scanner.spec()
    if scanner.peek():
        raise scanner.error("unexpected text after the options")
    return spec


def build(cls: type[Any], spec: Spec, kind: str) -> Any:
    """Make a frozen dataclass from a spec, converting each option to its field's type.

    A class with a `from_spec(spec)` of its own is asked to read the options itself.

    Raises:
        GraphoptError: unknown option (with the nearest one) or a value of the wrong type.
    """
    if hasattr(cls, "from_spec"):
        return cls.from_spec(spec)
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}
    values: dict[str, Any] = {}
    for key, text in spec.options:
        if key not in fields:
            raise GraphoptError(f"{kind} {spec.name!r} has no option {key!r}{did_you_mean(key, fields)}")
        try:
            values[key] = _convert(text, _hint(cls, key))
        except ValueError as error:
            raise GraphoptError(f"{kind} {spec.name!r}: option {key}={_print_value(text)} {error}") from None
    missing = [
        name
        for name, field in fields.items()
        if name not in values and field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise GraphoptError(f"{kind} {spec.name!r} needs option {missing[0]!r}: {spec.name}{{{missing[0]}=...}}")
    return cls(**values)


def _hint(cls: type[Any], field: str) -> Any:
    """The type of one field. Only its own annotation is evaluated: others may name what type checkers alone import."""
    owner = next(base for base in cls.__mro__ if field in inspect.get_annotations(base))
    alone = types.SimpleNamespace(__annotations__={field: inspect.get_annotations(owner)[field]})
    return typing.get_type_hints(alone, globalns=vars(sys.modules[owner.__module__]))[field]


def option_type(cls: type[Any], field: str) -> str:
    """How an option's type is told to users: `int`, `cpu|cuda`, `list of str`, `int or none`."""
    return _type_text(_hint(cls, field))


def _type_text(hint: Any) -> str:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return "|".join(map(str, args))
    if origin in (typing.Union, types.UnionType):
        return " or ".join("none" if arg is type(None) else _type_text(arg) for arg in args)
    if origin is tuple:
        return f"list of {_type_text(args[0])}"
    return getattr(hint, "__name__", str(hint))


def unbuild(value: Any, name: str) -> Spec:
    """The canonical spec of a frozen dataclass: fields that differ from their default, in declaration order."""
    options = []
    for field in dataclasses.fields(value):
        current = getattr(value, field.name)
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        if field.init and current != default:
            options.append((field.name, _to_text(current)))
    return Spec(name, tuple(options))


def _convert(text: str | tuple[str, ...], hint: Any) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if text == "none" and type(None) in args:
            return None
        last = ValueError("has no usable type")
        for option in args:
            if option is not type(None):
                try:
                    return _convert(text, option)
                except ValueError as error:
                    last = error
        raise last
    if origin is typing.Literal:
        if text not in args:
            near = nearest(str(text), map(str, args))
            meant = f"; did you mean {near!r}?" if near is not None else ""
            raise ValueError(f"is not one of {', '.join(map(str, args))}{meant}")
        return text
    if origin is tuple:
        items = text if isinstance(text, tuple) else (text,)
        return tuple(_convert(item, args[0]) for item in items)
    if isinstance(text, tuple):
        raise ValueError("is a list, one value is wanted")
    if hint is bool:
        if text not in ("true", "false"):
            raise ValueError("is not true or false")
        return text == "true"
    if hint in (int, float):
        try:
            return hint(text)
        except ValueError:
            raise ValueError(f"is not {'an integer' if hint is int else 'a number'}") from None
    return text


def _to_text(value: Any) -> str | tuple[str, ...]:
    if isinstance(value, tuple):
        return tuple(str(_to_text(item)) for item in value)
    if isinstance(value, bool):
        return "true" if value else "false"
    return "none" if value is None else str(value)


def _print_value(value: str | tuple[str, ...]) -> str:
    if isinstance(value, tuple):
        return f"[{' '.join(_print_value(item) for item in value)}]"
    if value and _BARE.fullmatch(value):
        return value
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
