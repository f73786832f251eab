"""The command-line interface: parses arguments, prints progress to stderr and results to stdout, nothing else."""

from __future__ import annotations

import importlib
import json
import os

import click
from forecast.terms.errors import typeable

# Module and help text of each command. `workshop --help` is fast because it imports none of these modules.
COMMANDS = {
    "up": ("servers", "Start the servers that are down, and wait until each one responds."),
    "down": ("servers", "Stop all servers, or only the named ones."),
    "status": ("servers", "Show the servers, and the notebooks running on the cluster."),
    "config": ("pipeline", "Show addresses and folders, or export them to the shell."),
    "lab": ("servers", "Start the servers, then JupyterLab at the start page."),
    "backup": ("servers", "Back up the database and the artifacts to FILE, or restore them."),
    "repro": ("pipeline", "Run the changed stages of the pipeline."),
    "doctor": ("teaching", "Check this machine and say what to fix."),
    "check": ("teaching", "Show which steps are done and which one is next."),
    "reset": ("teaching", "Restore the original files of CHAPTER."),
}
TRACKED = ("repro", "check")  # commands that use the tracking server
ON_CLUSTER = ("up", "repro")  # commands that run notebooks on the cluster


class LazyGroup(click.Group):
    """Command group that imports a command's module when the command is called."""

    def list_commands(self, _context: click.Context) -> list[str]:
        """Return the command names."""
        return list(COMMANDS)

    def get_command(self, _context: click.Context, name: str) -> click.Command | None:
        """Import a command's module and return the command; None for an unknown name."""
        if name not in COMMANDS:
            return None
        return getattr(importlib.import_module(f"workshop.cli.{COMMANDS[name][0]}"), name)

    def format_commands(self, _context: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands with their help texts."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(
    cls=LazyGroup,
    commands=[click.Command(name) for name in COMMANDS],  # click suggests these names after a typo
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(package_name="workshop")
@click.pass_context
def main(context: click.Context) -> None:
    """From a messy notebook to a governed pipeline.

    \b
    Example:  workshop up --repro
    """
    from workshop.exports import loopback_without_proxy  # imported here, so that --help does not load pydantic (0.2 s)
    from workshop.settings import get_settings

    os.environ.update(loopback_without_proxy())
    if context.invoked_subcommand in TRACKED and (address := get_settings().explicit_tracking_uri):
        report(f"tracking server: {address} (set by MLFLOW_TRACKING_URI)")
    if context.invoked_subcommand in ON_CLUSTER and (address := get_settings().explicit_scheduler_address):
        report(f"Dask cluster: {address} (set by DASK_SCHEDULER_ADDRESS)")


# -- printing ---------------------------------------------------------------------------------------------------------
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")


def report(line: str) -> None:
    """Print a progress message to stderr."""
    click.echo(f"  {typeable(line)}", err=True)


def print_rows(rows: list[dict], as_json: bool) -> None:
    """Print rows (dicts with the same keys) as a table or as JSON."""
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    from tabulate import tabulate  # imported here because the import takes 0.1 s

    cells = [{name: "" if value is None else value for name, value in row.items()} for row in rows]
    click.echo(tabulate(cells, headers="keys", tablefmt="simple"))
