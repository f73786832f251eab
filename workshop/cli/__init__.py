"""The command line: arguments and printing only. Progress goes to standard error, results to standard output."""

from __future__ import annotations

import importlib
import json
import os

import click
from forecast.terms.errors import typeable

# The module of each command and its line in `workshop --help`, which imports no command and so is fast.
COMMANDS = {
    "up": ("servers", "Start the servers that do not run, and wait until each answers."),
    "down": ("servers", "Stop the servers, or only those that are named."),
    "status": ("servers", "Show the servers, and the notebooks on the cluster."),
    "config": ("pipeline", "Show addresses and folders, also as lines for the shell."),
    "lab": ("servers", "Start the servers, then JupyterLab at the start page."),
    "backup": ("servers", "Write database and artifacts to FILE, or restore them."),
    "repro": ("pipeline", "Run what changed of the pipeline."),
    "doctor": ("teaching", "Examine this machine and say what to type."),
    "check": ("teaching", "Show which steps are done and which one is next."),
    "reset": ("teaching", "Put the files of CHAPTER back to their start."),
}
TRACKED = ("repro", "check")  # use the tracking server
ON_CLUSTER = ("up", "repro")  # lead to notebooks on the cluster


class LazyGroup(click.Group):
    """A group that imports the module of a command when the command is called."""

    def list_commands(self, _context: click.Context) -> list[str]:
        """Return the names of the commands."""
        return list(COMMANDS)

    def get_command(self, _context: click.Context, name: str) -> click.Command | None:
        """Return a command."""
        if name not in COMMANDS:
            return None
        return getattr(importlib.import_module(f"workshop.cli.{COMMANDS[name][0]}"), name)

    def format_commands(self, _context: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands, each with its line."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(
    cls=LazyGroup,
    commands=[click.Command(name) for name in COMMANDS],  # for the suggestion after a misspelled one
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(package_name="workshop")
@click.pass_context
def main(context: click.Context) -> None:
    """From a messy notebook to a governed pipeline.

    \b
    Example:  workshop up --repro
    """
    from workshop.exports import loopback_without_proxy  # not for --help: pydantic takes 0.2 s
    from workshop.settings import get_settings

    os.environ.update(loopback_without_proxy())
    if context.invoked_subcommand in TRACKED and (address := get_settings().explicit_tracking_uri):
        report(f"tracking server: {address}, as MLFLOW_TRACKING_URI says")
    if context.invoked_subcommand in ON_CLUSTER and (address := get_settings().explicit_scheduler_address):
        report(f"cluster for notebooks: {address}, as DASK_SCHEDULER_ADDRESS says")


# -- printing ---------------------------------------------------------------------------------------------------------
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")


def report(line: str) -> None:
    """Report progress on standard error."""
    click.echo(f"  {typeable(line)}", err=True)


def print_rows(rows: list[dict], as_json: bool) -> None:
    """Print rows of the same columns."""
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    from tabulate import tabulate  # not for --help: takes 0.1 s

    cells = [{name: "" if value is None else value for name, value in row.items()} for row in rows]
    click.echo(tabulate(cells, headers="keys", tablefmt="simple"))
