"""Pipeline text: `fold-constants,fix{max=4}(cse,dce),quantize{skip=/head/Conv}`; `str(pipeline)` parses back.

`O0`..`O3` and `@name` are named pipelines (manager/levels.py) and are expanded when parsed.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graphopt.errors import GraphoptError
from graphopt.manager import registry
from graphopt.manager.base import Pass
from graphopt.spec import Scanner, Spec, _to_text, build

_MAX_DEPTH = 20


@dataclass(frozen=True)
class Fix:
    """Repeat the inner passes until a round changes nothing, at most `max` rounds."""

    items: tuple[Pass | Fix, ...]
    max: int = 8

    def __str__(self) -> str:
        option = "" if self.max == 8 else f"{{max={self.max}}}"
        return f"fix{option}({','.join(map(str, self.items))})"


@dataclass(frozen=True)
class Pipeline:
    """An ordered list of passes and fix-groups."""

    items: tuple[Pass | Fix, ...] = ()

    def __str__(self) -> str:
        return ",".join(map(str, self.items))

    def passes(self) -> Iterator[Pass]:
        """Every pass, in order, fix-groups opened."""
        yield from _flatten(self.items)

    def without(self, names: tuple[str, ...]) -> Pipeline:
        """The pipeline less the named passes.

        Raises:
            GraphoptError: a name is no pass of this pipeline.
        """
        there = {item.name for item in self.passes()}
        for name in names:
            registry.get(name)
            if name not in there:
                raise GraphoptError(
                    f"--disable-pass {name}: the pipeline has no such pass; it has: {', '.join(sorted(there))}"
                )
        return Pipeline(_without(self.items, frozenset(names)))


def _flatten(items: tuple[Pass | Fix, ...]) -> Iterator[Pass]:
    for item in items:
        if isinstance(item, Fix):
            yield from _flatten(item.items)
        else:
            yield item


def _without(items: tuple[Pass | Fix, ...], names: frozenset[str]) -> tuple[Pass | Fix, ...]:
    kept: list[Pass | Fix] = []
    for item in items:
        if isinstance(item, Fix):
            inner = _without(item.items, names)
            if inner:
                kept.append(Fix(inner, item.max))
        elif item.name not in names:
            kept.append(item)
    return tuple(kept)


def parse(text: str) -> Pipeline:
    """Parse pipeline text.

    Raises:
        SpecError: grammar, with a caret under the column.
        GraphoptError: unknown pass, option or named pipeline.
    """
    scanner = Scanner(text)
    items = _sequence(scanner)
    if scanner.peek():
        raise scanner.error("expected ',' or the end")
    return Pipeline(tuple(items))


def _sequence(scanner: Scanner, depth: int = 0) -> list[Pass | Fix]:
    items: list[Pass | Fix] = []
    if depth > _MAX_DEPTH:
        raise scanner.error(f"fix is nested deeper than {_MAX_DEPTH}")
    if scanner.peek() in ("", ")"):
        return items
    while True:
        items.extend(_item(scanner, depth))
        if not scanner.take(","):
            return items


def _item(scanner: Scanner, depth: int) -> list[Pass | Fix]:
    from graphopt.manager import levels

    scanner.take("-")  # `-O2` as on the command line
    spec = scanner.spec()
    if spec.name != "fix":
        if levels.is_named(spec.name):
            return list(levels.expand(spec).items)
        return [registry.make(spec)]
    scanner.expect("(", "after fix")
    inner = _sequence(scanner, depth + 1)
    scanner.expect(")", "to close fix")
    if not inner:
        raise scanner.error("fix needs at least one pass")
    options = build(_FixOptions, spec, "group")
    return [Fix(tuple(inner), options.max)]


@dataclass(frozen=True)
class _FixOptions:
    max: int = 8

    def __post_init__(self) -> None:
        if self.max < 1:
            raise GraphoptError("group 'fix': max must be at least 1")


def load_recipe(path: str | Path) -> Pipeline:
    """Read a TOML recipe: `[[pass]]` tables with `name` and the pass's options; one of name "fix" holds a `pass` list.

    Raises:
        GraphoptError: unreadable, not TOML, or not a recipe.
    """
    path = Path(path)
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise GraphoptError(f"recipe {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise GraphoptError(f"recipe {path}: not TOML: {error}") from None
    unknown = set(data) - {"pass"}
    if unknown or not isinstance(data.get("pass"), list):
        raise GraphoptError(
            f"recipe {path}: wants only [[pass]] tables" + (f", found {sorted(unknown)[0]!r}" if unknown else "")
        )
    return Pipeline(tuple(item for table in data["pass"] for item in _from_table(table, path)))


def _from_table(table: dict[str, Any], path: Path) -> list[Pass | Fix]:
    from graphopt.manager import levels

    if not isinstance(table, dict) or not isinstance(table.get("name"), str):
        raise GraphoptError(f"recipe {path}: each [[pass]] needs a name")
    rest = {key.replace("-", "_"): value for key, value in table.items() if key != "name"}
    if table["name"] == "fix":
        inner = rest.pop("pass", [])
        if not isinstance(inner, list):
            raise GraphoptError(f"recipe {path}: fix needs [[pass.pass]] tables")
        items = tuple(item for row in inner for item in _from_table(row, path))
        if not items:
            raise GraphoptError(f"recipe {path}: fix needs at least one pass")
    options = tuple((key, _to_text(tuple(value) if isinstance(value, list) else value)) for key, value in rest.items())
    spec = Spec(table["name"], options)
    if spec.name == "fix":
        return [Fix(items, build(_FixOptions, spec, "group").max)]
    return list(levels.expand(spec).items) if levels.is_named(spec.name) else [registry.make(spec)]


def dump_recipe(pipeline: Pipeline) -> str:
    """The TOML recipe that says the same as the pipeline text."""
    return "\n".join(_tables(pipeline.items, "pass"))


def _tables(items: tuple[Pass | Fix, ...], key: str) -> Iterator[str]:
    import dataclasses
    import json

    for item in items:
        yield f"[[{key}]]"
        if isinstance(item, Fix):
            yield f'name = "fix"\nmax = {item.max}\n'
            yield from _tables(item.items, f"{key}.pass")
            continue
        yield f'name = "{item.name}"'
        for field in dataclasses.fields(item):
            value = getattr(item, field.name)
            if value != field.default and value is not None:
                # Unescaped beyond ASCII: TOML has no surrogate pairs. DEL is the one character that JSON leaves bare.
                written = json.dumps(list(value) if isinstance(value, tuple) else value, ensure_ascii=False)
                yield f"{field.name} = {written}".replace("\x7f", "\\u007f")
        yield ""
