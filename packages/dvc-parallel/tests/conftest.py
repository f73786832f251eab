"""Privileged tests are skipped without their privileges."""

from programs import pytest_runtest_setup  # noqa: F401 - a hook
