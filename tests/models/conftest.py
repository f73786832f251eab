"""The tests of this room."""

from __future__ import annotations

import pytest
from threadpoolctl import threadpool_limits


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Let each process of the tests fit with one thread: more than there are cores wait for one another, busily."""
    import sklearn  # noqa: F401 - brings the library whose threads are meant

    with threadpool_limits(1, user_api="openmp"):
        yield
