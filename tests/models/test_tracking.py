"""Runs with their lineage, on the real tracking server."""

from __future__ import annotations

import time

import pytest
from workplace import clean_environment, environment_of, free_port

from workshop.errors import ServiceError
from workshop.models.store import connect


def test_connect_to_a_dead_server_fails_within_seconds():
    """No answer: the address and what to type, in words, long before MLflow itself would give up."""
    address = f"http://127.0.0.1:{free_port()}"
    with environment_of(clean_environment() | {"MLFLOW_TRACKING_URI": address}):
        began = time.monotonic()
        with pytest.raises(ServiceError) as caught:
            connect()
        assert time.monotonic() - began < 5
    assert address in str(caught.value)
    assert "workshop up" in str(caught.value)


def test_connect_to_a_file_is_refused():
    """MLflow's own fallback, a database in the current folder, is not a server."""
    with (
        environment_of(clean_environment() | {"MLFLOW_TRACKING_URI": "sqlite:///mlflow.db"}),
        pytest.raises(ServiceError, match="workshop config --export"),
    ):
        connect()
