"""The server of `servers.py` for all tests, and names for registered models."""

from __future__ import annotations

import re

import pytest
import servers


def pytest_configure(config):
    """Register the server's fixture: one of a conftest.py would not reach the doctests in `src`."""
    config.pluginmanager.register(servers)


@pytest.fixture
def name(request):
    """Return the name of a registered model of the test's own."""
    return re.sub(r"\W+", "_", request.node.name)
