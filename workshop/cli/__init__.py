"""The command line: arguments and printing only."""

from __future__ import annotations

import os

import click

from workshop.cli import data, lab, models, pipeline, servers, teaching
from workshop.cli.printing import tell

TRACKED = ("promote", "rollback", "history", "lineage", "report", "repro", "run", "check")  # ask the tracking server
ON_CLUSTER = ("up", "repro", "run")  # lead to notebooks on the cluster

# Everything else is imported by the command that needs it: `workshop --help` answers at once.


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="workshop")
@click.pass_context
def main(context: click.Context) -> None:
    """From a messy notebook to a governed pipeline.

    \b
    workshop start      start the servers, run the pipeline, show the model in production
    workshop repro      run what changed of the pipeline, independent stages side by side
    workshop run        run a notebook on the cluster, once or for many parameters
    workshop history    what was in production, since when and why; `rollback` brings it back
    workshop status     what runs, and where
    """
    from workshop.settings import get_settings, loopback_without_proxy

    os.environ.update(loopback_without_proxy())
    if context.invoked_subcommand in TRACKED and (given := get_settings().given_tracking_uri):
        tell(f"tracking server: {given}, as MLFLOW_TRACKING_URI says")
    if context.invoked_subcommand in ON_CLUSTER and (given := get_settings().given_scheduler_address):
        tell(f"cluster for notebooks: {given}, as DASK_SCHEDULER_ADDRESS says")


for command in (
    *(servers.up, servers.down, servers.status, servers.config),
    *(servers.backup, servers.restore),
    *(pipeline.start, pipeline.repro, pipeline.run, pipeline.params, pipeline.tracking_store),
    *(models.promote, models.rollback, models.history, models.lineage, models.report, data.data),
    *(lab.lab, teaching.check, teaching.doctor, teaching.reset),
):
    main.add_command(command)
