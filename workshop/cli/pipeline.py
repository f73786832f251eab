"""Commands for the pipeline: run it, check its parameters, show what it runs on, and get its data."""

from __future__ import annotations

import json
import logging
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import dvc_parallel
import yaml

from workshop import fingerprint
from workshop.cli import json_option, print_rows, report
from forecast.table.files import write_atomically
from forecast.parameters import STAGES, allowed, load, read, read_stage
from workshop.settings import EXPORT_COMMAND, Settings, get_settings

# Modules that the programs of the stages import, in three to four seconds of a cold start.
PRELOAD = (
    "mlflow_gate.cli", "forecast.learn.registry", "workshop.cli.pipeline", "forecast.raw.sources", "nbformat",
    "pyarrow.fs", "nbclient", "papermill.__main__", "papermill_dask.engine", "papermill_dask.worker", "tqdm.auto",
)  # fmt: skip


def reproduce(settings: Settings, targets: Sequence[str] = (), *, shell_first: bool = False, **options: Any) -> None:
    """Bring the pipeline up to date on the servers, by default with as many simultaneous stages as Dask workers.

    ``shell_first``: use the server and the cluster that the shell names, if any, as a `dvc repro` typed there does. The
    ``options`` are those of `dvc_parallel.reproduce`.
    """
    file = settings.pipeline / "params.yaml"
    if file.exists() and STAGES.keys() <= load(file).keys():  # another pipeline has other sections
        read(file)
    servers = {name: value for name, value in settings.exports().items() if not (shell_first and os.environ.get(name))}
    path = str(Path(sys.executable).parent) + os.pathsep + os.environ.get("PATH", os.defpath)
    os.environ.update(servers, PATH=path, PYTHONUNBUFFERED="1")  # for the programs of the stages
    options["jobs"] = options.get("jobs") or settings.dask_workers
    dvc_parallel.reproduce(
        targets,
        preload=PRELOAD,
        first=("workshop.cli.pipeline", "forecast.store"),  # of `workshop config --pipeline`
        progress=dvc_parallel.lines(lambda text: click.echo(text, nl=False, err=True)),
        notice=report,
        **options,
    )


def finish_run() -> str:
    """Return what is in production, as a line for a person; make chapter 3's table first if the sample's is missing.

    A pipeline of other data may have another problem, in whose terms there is no such table.
    """
    from forecast.learn import registry# imports pandas

    settings = get_settings()
    csv = settings.root / "3_projects" / "germany.csv"
    is_missing = csv.parent.exists() and not csv.exists()
    if is_missing and read_stage(settings.pipeline / "params.yaml", "fetch").source == "sample":
        from forecast.raw.prepare import load_or_make  # imports pandera

        load_or_make(csv)
    return registry.Registry().status().line


def reproduce_and_ask(settings: Settings, targets: Sequence[str] = (), **options: Any) -> str:
    """Bring the pipeline up to date, with the options of `reproduce`; return the line of `finish_run`."""
    # MLflow's imports, and a table, take as long as to find that nothing has changed, and threads import one after the
    # other. This answers once, while nothing else needs the processor, and again when its input ends, or this process.
    code = "import sys; from workshop.cli.pipeline import finish_run as end; end(); sys.stdin.read(); print(end())"
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(["nice", sys.executable, "-c", code], **pipes, text=True, start_new_session=True) as asked:
        reproduce(settings, targets, **options)
        answer = asked.communicate()[0]
    return finish_run() if asked.returncode else answer.strip()  # asked again here, an error that it met is raised


def run_and_show(settings: Settings) -> None:
    """Run the pipeline and print the addresses and the model in production."""
    click.echo("Pipeline", err=True)
    production = reproduce_and_ask(settings, folder=settings.pipeline)
    rows = {
        "Dashboard": settings.dashboard_url,
        "MLflow": settings.exports()["MLFLOW_TRACKING_URI"],
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
    if folder == settings.pipeline:
        click.echo(reproduce_and_ask(settings, targets, shell_first=True, folder=folder, **options))
    else:
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
    print_rows(rows, as_json, widest=max(20, shutil.get_terminal_size().columns // 2))


@click.command()
@click.option("--export", is_flag=True, help="Print shell lines that set the addresses and PATH.")
@click.option("--pipeline", "folder", type=click.Path(path_type=Path), help="Write there what DVC cannot see.")
@json_option
def config(export: bool, folder: Path | None, as_json: bool) -> None:
    """Show addresses and folders; with --export, for the shell to read.

    With --pipeline, what DVC cannot see is written to files in a folder, for stages to depend on: which tracking store
    this is (`tracking_store.json`), where the alias went since the last decision (`alias.json`), and the code that each
    stage imports (`code/`).

    \b
    Example:  eval "$(workshop config --export)"
    """
    settings = get_settings()
    if folder:
        from forecast.store import moved_since, store_id  # imports requests

        read(settings.pipeline / "params.yaml")  # the pipeline's first stage: fail before anything has run
        fingerprint.write_code(settings.pipeline, folder / "code")
        write_atomically(folder / "tracking_store.json", f"{json.dumps({'store_id': store_id()}, indent=1)}\n".encode())
        decision, alias = settings.pipeline / "results" / "decision.json", folder / "alias.json"
        if (moved := moved_since(decision)) is not None or not alias.exists():
            write_atomically(alias, f"{json.dumps(moved or {}, indent=1)}\n".encode())
        return
    if export:
        from workshop.servers.services import ports_for_shell  # imports requests

        for name, value in ports_for_shell(settings, report).exports().items():
            click.echo(f"export {name}={shlex.quote(value)}")
        click.echo(f'export PATH={shlex.quote(str(Path(sys.executable).parent))}":$PATH"')
        return
    values = settings.exports() | {"root": str(settings.root), "state": str(settings.state)}
    print_rows([{"name": name, "value": value} for name, value in values.items()], as_json)


@click.group()
def data() -> None:
    """Get the data, raw files or the processed table, and look at it.

    \b
    Example:  workshop data csv germany.csv
    """


@data.command()
@click.option("--source", type=click.Choice(["sample", "opsd", "csv"]), help="By default the one in params.yaml.")
@click.option("--to", "folder", type=click.Path(file_okay=False, path_type=Path), required=True, help="The folder.")
def fetch(source: str | None, folder: Path) -> None:
    """Put the raw files of a source into a folder, checksummed, with their attribution.

    A file of your own is read as the section `fetch` of params.yaml says. Downloads are kept: the second time needs no
    network.

    \b
    Example:  workshop data fetch --to raw_data
              workshop data fetch --source opsd --to raw_data
    """
    from forecast.raw import sources# imports pandas

    base = get_settings().pipeline
    options: Any = None if source == "sample" else read_stage(base / "params.yaml", "fetch")
    files = sources.fetch(source or options.source, folder, options, base=base, progress=sys.stderr.isatty())
    for file in files:
        click.echo(file)
    click.echo(sources.origin_in(folder).attribution, err=True)


@data.command("csv")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
def make_csv(file: Path) -> None:
    """Write the processed hours of the embedded sample to FILE, unless the file is there already.

    \b
    Example:  workshop data csv 3_projects/germany.csv
    """
    from forecast.raw.prepare import load_or_make  # imports pandas

    logger = logging.getLogger("workshop.data")  # which says what was left out and why
    logger.addHandler(logging.StreamHandler())
    logger.setLevel(logging.INFO)
    click.echo(f"{file}: {len(load_or_make(file))} hours")
