"""Pipeline commands: `repro` and `config`."""

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
from workshop.tracking import verified_tracking_uri

NONE = "no model is in production"


def reproduce(settings: Settings, targets: Sequence[str] = (), *, shell_first: bool = False, **options: Any) -> None:
    """Run the changed stages with this clone's servers; by default, as many in parallel as there are Dask workers.

    With ``shell_first``, the shell's variables override this clone's server addresses, as in a plain `dvc repro`.
    ``options`` are passed to `dvc_parallel.reproduce`.
    """
    verified_tracking_uri(settings)  # another clone's server may have taken the port
    exports = {name: text for name, text in exports_of(settings).items() if not (shell_first and os.environ.get(name))}
    path = str(Path(sys.executable).parent) + os.pathsep + os.environ.get("PATH", os.defpath)
    os.environ.update(exports, PATH=path, PYTHONUNBUFFERED="1")  # the stages inherit these variables
    options["jobs"] = options.get("jobs") or settings.dask_workers
    dvc_parallel.reproduce(
        targets,
        progress=dvc_parallel.lines(lambda text: click.echo(text, nl=False, err=True)),
        notice=report,
        **options,
    )


def finish_run(settings: Settings) -> str:
    """Return the model in production with its score; write germany.csv for chapters 2 and 3 if it is missing.

    The model comes from the gate's decision file, which is up to date: the first stage of each run compares it with
    the registry. germany.csv is only written if the pipeline uses the sample.
    """
    tables = [settings.root / folder / "germany.csv" for folder in ("2_tracking", "3_projects")]
    missing = [table for table in tables if table.parent.exists() and not table.exists()]
    if missing and read_stage(settings.pipeline / "params.yaml", "fetch").source == "sample":
        from forecast.raw.prepare import load_or_make  # imports pandera

        load_or_make(missing[0])
        for table in missing[1:]:
            shutil.copyfile(missing[0], table)
    version = (read_decision(settings.pipeline / "results" / "decision.json") or {}).get("production")
    return ", ".join(filter(None, ["{name} {version}".format(**version), version.get("score")])) if version else NONE


def run_and_show(settings: Settings) -> None:
    """Run the pipeline, then print the servers' addresses and the model in production."""
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
    click.echo("\nNext: open the dashboard, or type `make lab` for the workshop. `make stop` stops the servers.")
    click.echo(f"In each terminal, first type: {EXPORT_COMMAND}")


@click.command()
@click.argument("targets", nargs=-1)
@click.option(
    "-j", "--jobs", type=click.IntRange(min=1), help="Maximum number of parallel stages (default: one per Dask worker)."
)
@click.option("-f", "--force", is_flag=True, help="Also run unchanged stages.")
@click.option("-P", "--all-pipelines", is_flag=True, help="Run all pipelines in the repository.")
def repro(targets: tuple[str, ...], **options: Any) -> None:
    """Run the changed stages of the pipeline; independent stages run in parallel.

    The results and dvc.lock are the same as with `dvc repro`. TARGETS are DVC stage names (default: all stages in the
    current folder's dvc.yaml, or in chapter 4's if there is none).

    \b
    Example:  workshop repro compare
    """
    settings = get_settings()
    folder = Path.cwd() if targets or options["all_pipelines"] else settings.pipeline
    reproduce(settings, targets, shell_first=True, folder=folder, **options)
    if folder == settings.pipeline and not targets:
        click.echo(f"Production  {finish_run(settings)}")


@click.command()
@click.option("--export", is_flag=True, help="Print shell commands that set the server addresses and PATH.")
@json_option
def config(export: bool, as_json: bool) -> None:
    """Show the server addresses and folders; with --export, print shell commands that export the variables.

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
