"""Commands for the pipeline: run it, and show what it runs on."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import dvc_parallel
from forecast.terms.parameters import read_stage
from mlflow_gate.decision import read_decision

from workshop.cli import json_option, print_rows, report
from workshop.exports import EXPORT_COMMAND, exports_of
from workshop.settings import Settings, get_settings
from workshop.tracking import own_or_given_uri

NOTHING = "nothing is in production"


def reproduce(settings: Settings, targets: Sequence[str] = (), *, shell_first: bool = False, **options: Any) -> None:
    """Bring the pipeline up to date on the servers, by default with as many simultaneous stages as Dask workers.

    ``shell_first``: use the server and the cluster that the shell names, if any, as a `dvc repro` typed there does. The
    ``options`` are those of `dvc_parallel.reproduce`.
    """
    own_or_given_uri(settings)  # another clone's server may have the port by now
    servers = {name: text for name, text in exports_of(settings).items() if not (shell_first and os.environ.get(name))}
    path = str(Path(sys.executable).parent) + os.pathsep + os.environ.get("PATH", os.defpath)
    os.environ.update(servers, PATH=path, PYTHONUNBUFFERED="1")  # for the programs of the stages
    options["jobs"] = options.get("jobs") or settings.dask_workers
    dvc_parallel.reproduce(
        targets,
        progress=dvc_parallel.lines(lambda text: click.echo(text, nl=False, err=True)),
        notice=report,
        **options,
    )


def finish_run(settings: Settings) -> str:
    """Return the model in production and its score; first make the tables of chapters 2 and 3 that are missing.

    What the gate left in production is there: a run begins with a stage that asks, and decides again if it is not. A
    pipeline of other data may have another problem, in whose terms there is no such table.
    """
    tables = [settings.root / folder / "germany.csv" for folder in ("2_tracking", "3_projects")]
    missing = [table for table in tables if table.parent.exists() and not table.exists()]
    if missing and read_stage(settings.pipeline / "params.yaml", "fetch").source == "sample":
        from forecast.raw.prepare import load_or_make  # imports pandera

        load_or_make(missing[0])
        for table in missing[1:]:
            shutil.copyfile(missing[0], table)
    left = (read_decision(settings.pipeline / "results" / "decision.json") or {}).get("production")
    return ", ".join(filter(None, ["{name} {version}".format(**left), left.get("score")])) if left else NOTHING


def run_and_show(settings: Settings) -> None:
    """Run the pipeline and print the addresses and the model in production."""
    click.echo("Pipeline", err=True)
    reproduce(settings, folder=settings.pipeline)
    production = finish_run(settings)
    rows = {
        "Dashboard": settings.dashboard_url,
        "MLflow": exports_of(settings)["MLFLOW_TRACKING_URI"],
        "Dask": settings.dask_dashboard_url,
        "FTP": settings.ftp_uri,
        "Production": production,
    }
    click.echo()
    for name, value in rows.items():
        click.echo(f"{name:<11} {value}")
    click.echo("\nNext: open the dashboard; for the workshop type `make lab`. `make stop` ends the servers.")
    click.echo(f"In a terminal of your own first type: {EXPORT_COMMAND}")


@click.command()
@click.argument("targets", nargs=-1)
@click.option(
    "-j", "--jobs", type=click.IntRange(min=1), help="Maximum of simultaneous stages; by default one a Dask worker."
)
@click.option("-f", "--force", is_flag=True, help="Run stages that did not change, too.")
@click.option("-P", "--all-pipelines", is_flag=True, help="Run all pipelines of the repository.")
def repro(targets: tuple[str, ...], **options: Any) -> None:
    """Run what changed of the pipeline, stages that do not need one another side by side.

    It leaves the same files and the same dvc.lock as `dvc repro`. TARGETS are stages, as DVC names them; by default all
    of the dvc.yaml here, or of the chapter's pipeline.

    \b
    Example:  workshop repro compare
    """
    settings = get_settings()
    folder = Path.cwd() if targets or options["all_pipelines"] else settings.pipeline
    reproduce(settings, targets, shell_first=True, folder=folder, **options)
    if folder == settings.pipeline and not targets:
        click.echo(f"Production  {finish_run(settings)}")


@click.command()
@click.option("--export", is_flag=True, help="Print shell lines that set the addresses and PATH.")
@json_option
def config(export: bool, as_json: bool) -> None:
    """Show addresses and folders; with --export, for the shell to read.

    \b
    Example:  eval "$(workshop config --export)"
    """
    settings = get_settings()
    if export:
        from workshop.servers.services import ports_for_shell  # imports requests

        for name, value in exports_of(ports_for_shell(settings, report)).items():
            click.echo(f"export {name}={shlex.quote(value)}")
        click.echo(f'export PATH={shlex.quote(str(Path(sys.executable).parent))}":$PATH"')
        return
    values = exports_of(settings) | {"root": str(settings.root), "state": str(settings.state)}
    print_rows([{"name": name, "value": value} for name, value in values.items()], as_json)
