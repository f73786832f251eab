"""Skip privileged tests without the required privileges."""

from workplace import pytest_runtest_setup  # noqa: F401 - a hook
