"""Fixtures: the tracking server of `servers.py`, a registered model for each test, and a gate."""

from __future__ import annotations

import re

import pytest
import servers
from models import make_gate, train


def pytest_configure(config):
    """Register the server's fixture as a plugin: one in this conftest.py would not reach the doctests in `src`."""
    config.pluginmanager.register(servers)


@pytest.fixture
def name(request):
    """Return the name of a registered model that only this test uses."""
    return re.sub(r"\W+", "_", request.node.name)


@pytest.fixture
def gate(name):
    """Return a gate with version 1 (error 1.0) and version 2 (error 0.5), which is in production."""
    gate = make_gate(name)
    gate.runs = [train(1.0), train(0.5)]
    for run_id in gate.runs:
        assert gate.promote(run_id, why=f"try {run_id}").promoted
    return gate
