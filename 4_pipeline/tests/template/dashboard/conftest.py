"""Fixtures for the tests of the dashboard."""

from served import data_file, made, model, served  # noqa: F401 - fixtures
