"""Privileged tests are skipped where their powers are missing."""

from programs import pytest_runtest_setup  # noqa: F401 - a hook
