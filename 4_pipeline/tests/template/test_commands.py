"""The command line of the pipeline."""

from __future__ import annotations

import re

import click
import pytest
from click.testing import CliRunner
from forecast.__main__ import main


@pytest.mark.parametrize("name", main.commands)
def test_command_has_help_with_an_example(name):
    """The help of each command has an example."""
    command = main.get_command(click.Context(main), name)
    [example] = re.findall("Example:(.*)", command.help)
    assert f"python -m forecast {name}" in example


def test_csv_reports_the_hours_left_out_of_the_sample(tmp_path):
    """The output counts the hours kept, and the missing ones by source."""
    done = CliRunner().invoke(main, ["csv", str(tmp_path / "germany.csv")])
    assert done.exit_code == 0, done.stderr
    assert "35,016 of 35,064 hours kept, 2013-01-01 to 2016-12-31; left out: missing from power 28" in done.stderr
