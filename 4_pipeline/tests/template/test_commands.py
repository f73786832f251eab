"""The command line of the pipeline."""

from __future__ import annotations

import re

import click
import pytest
from click.testing import CliRunner
from forecast.__main__ import main


@pytest.mark.parametrize("name", main.commands)
def test_command_has_help_with_an_example(name):
    """Each command says what it does and shows a call of it."""
    command = main.get_command(click.Context(main), name)
    [example] = re.findall("Example:(.*)", command.help)
    assert f"python -m forecast {name}" in example


def test_csv_says_what_is_left_out_of_the_sample(tmp_path):
    """Hours kept, and how many are absent where."""
    done = CliRunner().invoke(main, ["csv", str(tmp_path / "germany.csv")])
    assert done.exit_code == 0, done.stderr
    assert "35,016 of 35,064 hours kept, 2013-01-01 to 2016-12-31; left out: missing from power 28" in done.stderr
