"""Whether weights must not saturate 16-bit sums: what the option `saturation` means on a target, or without one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from graphopt.manager.context import Context

Saturation = Literal["auto", "safe", "ignore"]
QUIRK = "u8s8-saturates"


def wants_safe(saturation: Saturation, ctx: Context) -> bool:
    """Whether codes are to be chosen that cannot saturate: with `auto` where the target does, or nobody says where."""
    if saturation != "auto":
        return saturation == "safe"
    return ctx.target is None or ctx.has_quirk(QUIRK)


def note_unknown(saturation: Saturation, ctx: Context) -> None:
    """Say that nobody said where the model is to run."""
    if saturation == "auto" and ctx.target is None:
        ctx.note(
            "no target is set, so the weights cannot saturate the 16-bit sums of any CPU; --target may allow finer ones"
        )
