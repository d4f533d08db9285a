"""The option that writes golden files anew: `python -m pytest tests/golden --update-golden`, then review the diff."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="write the expected text of golden files anew")


@pytest.fixture(scope="session")
def update_golden(request: pytest.FixtureRequest) -> bool:
    # The option is unknown when the run starts from another folder.
    return bool(request.config.getoption("--update-golden", default=False))
