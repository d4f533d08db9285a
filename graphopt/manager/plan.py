"""Passes that decide before they act: `plan` looks, `apply` changes. A plan is data: JSON, reviewable, editable.

A plan belongs to one model: it carries the model's structural hash, and `apply` refuses another.
"""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphopt.errors import GraphoptError
from graphopt.manager.base import Pass

if TYPE_CHECKING:
    from graphopt import ir
    from graphopt.manager.context import Context

FORMAT = 1


@dataclass(frozen=True)
class Plan:
    """What one pass has decided about one model.

    Attributes:
        name: of the pass.
        spec: the pass with its options, as pipeline text.
        model: structural hash of the model that it was made for.
        decisions: JSON values; their form is the pass's own, told in its docstring.
    """

    name: str
    spec: str
    model: str
    decisions: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        return {"pass": self.name, "spec": self.spec, "model": self.model, "decisions": dict(self.decisions)}

    @classmethod
    def from_json(cls, data: Any) -> Plan:
        """Read what `to_json` wrote.

        Raises:
            GraphoptError: it is something else.
        """
        wanted = {"pass": str, "spec": str, "model": str, "decisions": dict}
        if not isinstance(data, dict) or any(not isinstance(data.get(key), kind) for key, kind in wanted.items()):
            raise GraphoptError(f"a plan wants the keys {', '.join(wanted)}")
        return cls(data["pass"], data["spec"], data["model"], data["decisions"])


@dataclass(frozen=True)
class PlanPass(Pass):
    """A pass in two halves. A run applies the plan that it was given for the pass, else the one that it makes."""

    @abstractmethod
    def plan(self, model: ir.Model, ctx: Context) -> Mapping[str, Any]:
        """Decide; change nothing. Returns JSON values."""

    @abstractmethod
    def apply(self, model: ir.Model, ctx: Context, decisions: Mapping[str, Any]) -> None:
        """Carry out decisions through `ctx.rewriter`.

        Raises:
            GraphoptError: a decision names a site that is not there.
        """

    def run(self, model: ir.Model, ctx: Context) -> None:
        from graphopt.ir.hash import structural_hash

        here = structural_hash(model)
        plan = ctx.plans.take(self.name)
        if plan is None:
            plan = Plan(self.name, str(self), here, self.plan(model, ctx))
        elif plan.model != here:
            raise GraphoptError(
                f"the plan of {self.name!r} was made for another model (hash {plan.model[:12]}, here {here[:12]}); "
                "make it again with --plan-only"
            )
        ctx.plans.made.append(plan)
        self.apply(model, ctx, plan.decisions)


class Plans:
    """The plans of one run: those it was given, each used once and in order, and those it carried out."""

    def __init__(self, given: Sequence[Plan] = ()) -> None:
        self.given = list(given)
        self.made: list[Plan] = []

    def take(self, name: str) -> Plan | None:
        """The next given plan of a pass; None when there is none left."""
        found = next((plan for plan in self.given if plan.name == name), None)
        if found is not None:
            self.given.remove(found)
        return found

    def check_used(self) -> None:
        """Refuse plans that no pass of the pipeline took.

        Raises:
            GraphoptError: names the first one.
        """
        if self.given:
            raise GraphoptError(f"no pass {self.given[0].name!r} of the pipeline took its plan")


def to_json(plans: Sequence[Plan]) -> str:
    """The text of a plan file."""
    return json.dumps({"format": FORMAT, "plans": [plan.to_json() for plan in plans]}, indent=1, sort_keys=True) + "\n"


def read_plans(path: Path) -> list[Plan]:
    """The plans of a file as `--plan-only` printed it.

    Raises:
        GraphoptError: no such file, or not that.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise GraphoptError(f"--plan {path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    except json.JSONDecodeError as error:
        raise GraphoptError(f"--plan {path}: not JSON: {error}") from None
    if not isinstance(data, dict) or data.get("format") != FORMAT or not isinstance(data.get("plans"), list):
        raise GraphoptError(f"--plan {path}: wants {{format: {FORMAT}, plans: [...]}}")
    try:
        return [Plan.from_json(item) for item in data["plans"]]
    except GraphoptError as error:
        raise GraphoptError(f"--plan {path}: {error}") from None
