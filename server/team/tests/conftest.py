"""Skip privileged tests if privileges are missing."""

from workplace import pytest_runtest_setup  # noqa: F401 - a hook
