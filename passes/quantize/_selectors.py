"""Choosing nodes by site, op type or regular expression; a selector that chooses nothing is an error."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from graphopt.errors import GraphoptError, did_you_mean
from graphopt.ir import optable

if TYPE_CHECKING:
    from graphopt import ir


def select(selectors: Iterable[str], nodes: Mapping[str, ir.Node], option: str) -> set[ir.Node]:
    """The nodes that a list of selectors names.

    Args:
        selectors: sites (`scope/node`), op types, or regular expressions that match a whole site.
        nodes: every node by site.
        option: pass and option, for messages.

    Raises:
        GraphoptError: a selector matches no node (did you mean), or is no regular expression.
    """
    found: set[ir.Node] = set()
    for text in selectors:
        if text in nodes:
            found.add(nodes[text])
            continue
        if text in optable.op_names():
            matches = [node for node in nodes.values() if node.op_type == text]
        else:
            try:
                pattern = re.compile(text)
            except re.error as error:
                raise GraphoptError(f"{option}={text!r} is no regular expression: {error}") from None
            matches = [node for site, node in nodes.items() if pattern.fullmatch(site)]
        if not matches:
            raise GraphoptError(f"{option}={text!r} matches no node of the model{did_you_mean(text, nodes)}")
        found.update(matches)
    return found
