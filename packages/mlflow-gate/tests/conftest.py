"""The server of `servers.py` for all tests, and names for registered models."""

from __future__ import annotations

import re

import pytest
import servers
from models import make_gate, train


def pytest_configure(config):
    """Register the server's fixture: one of a conftest.py would not reach the doctests in `src`."""
    config.pluginmanager.register(servers)


@pytest.fixture
def name(request):
    """Return the name of a registered model of the test's own."""
    return re.sub(r"\W+", "_", request.node.name)


@pytest.fixture
def gate(name):
    """Return a gate with versions 1 and 2, of errors 1.0 and 0.5; version 2 is in production."""
    gate = make_gate(name)
    gate.runs = [train(1.0), train(0.5)]
    for run_id in gate.runs:
        assert gate.promote(run_id, why=f"try {run_id}").promoted
    return gate
