"""Commands for the pipeline: run it, and check its parameters."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import dvc_parallel
import yaml

from workshop.cli import json_option, print_rows, report
from workshop.parameters import STAGES, allowed, load, read, read_stage
from workshop.problem import REGISTERED_MODEL
from workshop.settings import EXPORT_COMMAND, PRODUCTION, STAGE_TAG, Settings, get_settings

# Modules that the programs of the stages import, in three to four seconds of a cold start.
PRELOAD = (
    "workshop.cli.data", "workshop.cli.models", "workshop.cli.repro", "workshop.cli.servers", "requests", "nbformat",
    "pyarrow.fs", "nbclient", "papermill.__main__", "distributed", "papermill_dask.engine", "papermill_dask.worker",
)  # fmt: skip


def reproduce(settings: Settings, targets: Sequence[str] = (), *, shell_first: bool = False, **options: Any) -> None:
    """Bring the pipeline up to date on the servers, by default as many stages at once as there are Dask workers.

    ``shell_first``: use the server and the cluster that the shell names, if any, as a `dvc repro` typed there does. The
    ``options`` are those of `dvc_parallel.reproduce`.
    """
    file = settings.pipeline / "params.yaml"
    if file.exists() and STAGES.keys() <= load(file).keys():  # another pipeline has other sections
        read(file)
    servers = {name: value for name, value in settings.exports().items() if not (shell_first and os.environ.get(name))}
    path = str(Path(sys.executable).parent) + os.pathsep + os.environ.get("PATH", os.defpath)
    options["jobs"] = options.get("jobs") or settings.dask_workers
    dvc_parallel.reproduce(
        targets,
        preload=PRELOAD,
        environment=servers | {"PATH": path, "PYTHONUNBUFFERED": "1"},
        progress=dvc_parallel.lines(lambda text: click.echo(text, nl=False, err=True)),
        notice=report,
        **options,
    )


def run_and_show(settings: Settings) -> None:
    """Run the pipeline and print the addresses and the model in production."""
    click.echo("Pipeline", err=True)
    reproduce(settings, folder=settings.pipeline)
    if not (csv := settings.root / "3_projects" / "germany.csv").exists():
        from workshop.data.prepare import load_or_make

        load_or_make(csv)
    tracking_uri = settings.exports()["MLFLOW_TRACKING_URI"]
    rows = {
        "Dashboard": settings.dashboard_url,
        "MLflow": tracking_uri,
        "Dask": settings.dask_dashboard_url,
        "FTP": settings.ftp_uri,
        "Production": _in_production(tracking_uri),
    }
    click.echo()
    for name, value in rows.items():
        click.echo(f"{name:<11} {value}")
    click.echo("\nNext: open the dashboard; for the workshop type `make lab`. `make stop` ends the servers.")
    click.echo(f"In a terminal of your own first type: {EXPORT_COMMAND}")


@click.command()
@click.argument("targets", nargs=-1)
@click.option("-j", "--jobs", type=click.IntRange(min=1), help="Most stages at once; by default one a Dask worker.")
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


@click.command()
@click.argument("stage", required=False)
@click.option("--to", "target", type=click.Path(dir_okay=False, path_type=Path), help="Write STAGE's section there.")
@json_option
def params(stage: str | None, target: Path | None, as_json: bool) -> None:
    """Check params.yaml, or one STAGE of it, and show its values and what is allowed.

    With --to the checked section is written to a file, as `papermill -f` reads it, and not shown.

    \b
    Example:  workshop params train_rf
              workshop params train_rf --to executed/train_rf.yaml
    """
    file = get_settings().pipeline / "params.yaml"
    checked = {stage: read_stage(file, stage)} if stage else read(file)
    if target is not None:
        if stage is None:
            raise click.UsageError("--to needs a STAGE.")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(yaml.safe_dump(checked[stage].model_dump(), sort_keys=False))
        return
    rows = [
        {"parameter": f"{name}.{key}", "value": value, "allowed": allowed(STAGES[name], key)}
        for name, section in checked.items()
        for key, value in section.model_dump().items()
    ]
    names, values = (max(len(str(row[column])) for row in rows) for column in ("parameter", "value"))
    room = max(shutil.get_terminal_size().columns - names - 4, 20)
    print_rows(rows, as_json, [None, min(values, room // 2), room - min(max(values, 5), room // 2)])


def _in_production(tracking_uri: str) -> str:
    """Say which model is in production. MLflow's own client would take two seconds to import."""
    import requests

    def get(what: str, **options: str) -> dict:
        return requests.get(f"{tracking_uri}/api/2.0/mlflow/{what}", options, timeout=60).json()

    named = get("registered-models/alias", name=REGISTERED_MODEL, alias=PRODUCTION)
    if not (version := named.get("model_version")):
        return "none: the gate refused every model so far (4_pipeline/results/decision.json)"
    run = get("runs/get", run_id=version.get("run_id", "")).get("run", {}).get("data", {})
    known = {entry["key"]: entry["value"] for kind in ("tags", "metrics") for entry in run.get(kind, [])}
    r2 = f"{known['r2']:.3f}" if "r2" in known else "unknown"
    maker = known.get(STAGE_TAG, "registered by hand")
    return f"{REGISTERED_MODEL} version {version['version']} ({maker}), held-out R2 {r2}"
