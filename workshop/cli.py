"""The command line: arguments and printing only."""

from __future__ import annotations

import contextlib
import json
import shlex
from pathlib import Path

import click

# Everything else is imported by the command that needs it: `workshop --help` answers at once.


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="workshop")
def main() -> None:
    """From a messy notebook to a governed pipeline.

    \b
    workshop start      start the servers, run the pipeline, show the model in production
    workshop repro      run what changed of the pipeline, independent stages side by side
    workshop run        run a notebook on the cluster, once or for many parameters
    workshop status     what runs, and where
    """


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")


def _tell(line: str) -> None:
    click.echo(f"  {line}", err=True)


def _print_rows(rows: list[dict], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    from tabulate import tabulate

    shown = [{name: "" if value is None else value for name, value in row.items()} for row in rows]
    click.echo(tabulate(shown, headers="keys", tablefmt="simple"))


# -- servers -------------------------------------------------------------------------------------------------------
@main.command()
def up() -> None:
    """Start the servers that do not run, and wait until each answers.

    \b
    Example:  workshop up
    """
    from workshop.servers import supervision

    supervision.up(_tell)


@main.command()
def down() -> None:
    """Stop the servers and all they started.

    \b
    Example:  workshop down
    """
    from workshop.servers import supervision

    ended = supervision.down(_tell)
    _tell(f"stopped, {ended} processes ended" if ended else "nothing was running")


@main.command()
@json_option
def status(as_json: bool) -> None:
    """Show what runs: the servers, and the notebooks on the cluster, at which cell and since when.

    \b
    Example:  workshop status --json
    """
    from workshop.servers import supervision

    services = [row.as_dict() for row in supervision.status()]
    notebooks = _running_notebooks(services)
    if as_json:
        click.echo(json.dumps({"services": services, "notebooks": notebooks}, indent=2))
        return
    _print_rows([{name: row[name] for name in row if name != "reason"} for row in services], as_json)
    click.echo("".join(f"\n{row['name']}: {row['reason']}\n" for row in services if row["reason"]), nl=False)
    if notebooks:
        click.echo()
        _print_rows(notebooks, as_json)


def _running_notebooks(services: list[dict]) -> list[dict]:
    """Ask the cluster, unless it is this machine's own and does not run."""
    from workshop.settings import get_settings

    own = next(service for service in services if service["name"] == "dask-scheduler")
    if get_settings().dask_scheduler_address is None and not own["healthy"]:
        return []
    from workshop.engine import cluster
    from workshop.errors import EngineError

    with contextlib.suppress(EngineError), cluster.connect() as client:  # raised while there is no worker
        return cluster.running(client)
    return []


@main.command()
@click.option("--export", is_flag=True, help="Print shell lines that set the addresses and PATH.")
@json_option
def config(export: bool, as_json: bool) -> None:
    """Show where things are; with --export, for the shell to read.

    \b
    Example:  eval "$(workshop config --export)"
    """
    from workshop.settings import get_settings

    settings = get_settings()
    if export:
        import sys

        for name, value in settings.exports().items():
            click.echo(f"export {name}={shlex.quote(value)}")
        click.echo(f'export PATH={shlex.quote(str(Path(sys.executable).parent))}":$PATH"')
        return
    values = settings.exports() | {"root": str(settings.root), "state": str(settings.state)}
    _print_rows([{"name": name, "value": value} for name, value in values.items()], as_json)


@main.command()
@json_option
def doctor(as_json: bool) -> None:
    """Say what is the matter with this machine and what to type; exit 1 when anything is.

    \b
    Example:  workshop doctor
    """
    from workshop.settings import get_settings
    from workshop.teaching.doctor import examine

    findings = examine(get_settings())
    if as_json:
        _print_rows([finding.as_dict() for finding in findings], as_json)
    else:
        for finding in findings:
            click.echo(f"{'ok ' if finding.ok else '!! '} {finding.check}: {finding.found}")
            if finding.next_step:
                click.echo(f"    next: {finding.next_step}")
    if not all(finding.ok for finding in findings):
        raise SystemExit(1)


# -- pipeline ------------------------------------------------------------------------------------------------------
@main.command()
@json_option
def start(as_json: bool) -> None:
    """Start the servers, run the pipeline, and show the model in production.

    With nothing changed, nothing is trained again.

    \b
    Example:  workshop start
    """
    from workshop.data.prepare import load_or_make
    from workshop.engine.repro.pipeline import reproduce
    from workshop.models.registry import production
    from workshop.servers import supervision

    click.echo("Servers", err=True)
    settings = supervision.up(_tell)
    click.echo("Pipeline", err=True)
    reproduce(settings, lambda text: click.echo(text, nl=False, err=True))
    load_or_make(settings.root / "3_projects" / "germany.csv")
    serving = production()
    shown = {
        "Dashboard": settings.dashboard_url,
        "MLflow": settings.exports()["MLFLOW_TRACKING_URI"],
        "Dask": settings.dask_dashboard_url,
        "FTP": settings.ftp_uri,
        "Production": serving.as_dict() if serving and as_json else _words(serving),
    }
    if as_json:
        click.echo(json.dumps(shown, indent=2))
        return
    click.echo()
    for name, value in shown.items():
        click.echo(f"{name:<11} {value}")
    click.echo('\nNext: open the dashboard; for the workshop type  eval "$(.venv/bin/workshop config --export)"')
    click.echo("      and open 1_starting_point/README.md. `make stop` ends the servers.")


def _words(serving) -> str:
    """Say in a line which model is in production."""
    if serving is None:
        return "none: the gate refused every model so far (4_pipeline/results/decision.json)"
    r2 = "unknown" if serving.r2 is None else f"{serving.r2:.3f}"
    return f"{serving.name} version {serving.version} ({serving.stage or 'registered by hand'}), held-out R2 {r2}"


@main.command()
@click.argument("targets", nargs=-1)
@click.option(
    "--jobs", type=click.IntRange(min=1), help="Most stages at once; by default what the cluster has room for."
)
@click.option("--force", is_flag=True, help="Run stages that did not change, too.")
def repro(targets: tuple[str, ...], jobs: int | None, force: bool) -> None:
    """Run what changed of the pipeline, stages that do not need one another side by side.

    It leaves what `dvc repro` leaves: the same files, the same dvc.lock. TARGETS are stages, as DVC names them; by
    default all of the dvc.yaml here, or of the chapter's pipeline.

    \b
    Example:  workshop repro compare
    """
    import sys

    from workshop.engine.repro import parallel, pipeline
    from workshop.settings import get_settings

    settings = get_settings()
    folder = Path.cwd() if Path("dvc.yaml").exists() or targets else settings.pipeline
    with parallel.board(sys.stderr) as (progress, notice):
        parallel.reproduce_parallel(
            folder,
            targets,
            jobs=jobs or pipeline.notebooks_at_once(settings),
            log=settings.logs / "pipeline.log",
            progress=progress,
            notice=notice,
            environment=pipeline.environment_of(settings, shell_first=True),
            force=force,
        )


@main.command()
@click.argument("notebook", type=click.Path(dir_okay=False, path_type=Path))
@click.option("-p", "parameters", nargs=2, multiple=True, metavar="NAME VALUE", help="A parameter of all runs.")
@click.option("--sweep", "sweeps", multiple=True, metavar="NAME=1,2,3", help="A run for each value, and combination.")
@click.option("--output", type=click.Path(file_okay=False, path_type=Path), help="Folder of the executed notebooks.")
@click.option("--rank-by", metavar="METRIC", help="Show the best first; METRIC:min or METRIC:max says what is best.")
@json_option
def run(notebook: Path, parameters, sweeps, output: Path | None, rank_by: str | None, as_json: bool) -> None:
    """Run NOTEBOOK on the cluster, once or for each combination of parameters.

    Each run is a notebook of its own, and in MLflow all lie under one parent run.

    \b
    Example:  workshop run notebooks/train_rf.ipynb --sweep max_depth=8,10,12 --rank-by r2
    """
    from workshop.engine import sweep
    from workshop.engine.combinations import read_value
    from workshop.errors import EngineError

    fixed = {name: read_value(value) for name, value in parameters}
    if rank_by:
        sweep.read_rank(rank_by)  # a mistake in it is told before anything runs
    done = sweep.run_many(notebook, fixed, sweeps, output, tell=_tell)
    unranked = None
    if rank_by:
        try:
            done = done.ranked(rank_by)
        except EngineError as error:  # told after the table, which shows what there is
            unranked = error
    _print_rows([row.as_dict() for row in done.runs] if as_json else done.table(), as_json)
    for failed in done.failed:
        _tell(f"failed: {failed.output}: {failed.error}")
    if unranked and not done.exit_code:
        raise unranked
    raise SystemExit(done.exit_code)


@main.command()
@click.argument("stage", required=False)
@json_option
def params(stage: str | None, as_json: bool) -> None:
    """Check params.yaml, or one STAGE of it, and show its values and what is allowed.

    \b
    Example:  workshop params train_rf
    """
    from workshop.parameters import STAGES, allowed, read, read_stage
    from workshop.settings import get_settings

    file = get_settings().pipeline / "params.yaml"
    checked = {stage: read_stage(file, stage)} if stage else read(file)
    rows = [
        {"parameter": f"{name}.{key}", "value": value, "allowed": allowed(STAGES[name], key)}
        for name, section in checked.items()
        for key, value in section.model_dump().items()
    ]
    _print_rows(rows, as_json)


@main.command("tracking-store")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
def tracking_store(file: Path) -> None:
    """Write the tracking store's identity to FILE, so that DVC notices a store that was wiped.

    \b
    Example:  workshop tracking-store data/tracking_store.json
    """
    from workshop.models.tracking import store_id
    from workshop.parameters import read
    from workshop.settings import get_settings

    read(get_settings().pipeline / "params.yaml")  # the pipeline's first stage: fail before anything has run
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"store_id": store_id()}, indent=1) + "\n")


@main.command()
@click.argument("candidate", type=click.Path(dir_okay=False, path_type=Path), required=False)
@click.option(
    "--decision",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write the decision here and exit 0 even when it is a refusal: a pipeline goes on.",
)
@click.option("--why", default="promoted on the command line", show_default=True, help="The reason, for the record.")
def promote(candidate: Path | None, decision: Path | None, why: str) -> None:
    """Put a candidate before the gate; promote it when it passes, exit 3 when it is refused.

    CANDIDATE is the file that the stage `compare` writes; by default the pipeline's own.

    \b
    Example:  workshop promote --why "better in winter"
    """
    from workshop.data import schema
    from workshop.errors import ModelError, PromotionRefused
    from workshop.models import registry
    from workshop.models.promotion import Policy
    from workshop.parameters import read_stage
    from workshop.settings import get_settings

    pipeline = get_settings().pipeline
    policy = Policy(**read_stage(pipeline / "params.yaml", "promote").model_dump())
    file = candidate or pipeline / "results" / "candidate.json"
    try:
        named = json.loads(file.read_text())
        run_id, model_uri = named["run_id"], named["model_uri"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"{file} names no candidate.",
            value=repr(error),
            expected="JSON with run_id and model_uri, as the stage `compare` writes it",
            next_step="cd 4_pipeline && dvc repro",
        ) from None
    held_out = schema.read(pipeline / "data" / "test.parquet")
    verdict, champion = registry.judge(run_id, model_uri, held_out, policy)
    now = registry.apply(verdict, run_id, model_uri, champion, why) if verdict.promoted else champion
    record = verdict.as_dict() | {"candidate_run": run_id, "production": now.as_dict() if now else None}
    if decision:
        decision.parent.mkdir(parents=True, exist_ok=True)
        decision.write_text(json.dumps(record, indent=1) + "\n")
    click.echo(verdict.reason)
    if not verdict.promoted and not decision:
        raise SystemExit(PromotionRefused.exit_code)


# -- data ----------------------------------------------------------------------------------------------------------
@main.group()
def data() -> None:
    """Get the data: raw files, or the processed table.

    \b
    Example:  workshop data csv germany.csv
    """


@data.command()
@click.option("--source", default=None, help="Where from; by default what params.yaml says.")
@click.option("--to", "folder", type=click.Path(file_okay=False, path_type=Path), required=True, help="The folder.")
def fetch(source: str | None, folder: Path) -> None:
    """Put the raw files of a source into a folder, checksummed, with their attribution.

    \b
    Example:  workshop data fetch --to raw_data
    """
    from workshop.data import sources
    from workshop.parameters import read_stage
    from workshop.settings import get_settings

    source = source or read_stage(get_settings().pipeline / "params.yaml", "fetch").source
    for file in sources.fetch(source, folder):
        click.echo(file)
    click.echo(sources.attribution(source), err=True)


@data.command("csv")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
def make_csv(file: Path) -> None:
    """Write the processed hours of the embedded sample to FILE, unless it is there already.

    \b
    Example:  workshop data csv 3_projects/germany.csv
    """
    from workshop.data.prepare import load_or_make

    frame = load_or_make(file)
    click.echo(f"{file}: {len(frame)} hours")
