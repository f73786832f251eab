"""The pipeline and its notebooks: run, once or many times, and checked."""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path

import click

from workshop.cli.printing import json_option, print_rows, tell

LOWER_IS_BETTER = re.compile(r"(^|[^a-z])(loss|error|rmse|mae|mse|mape|seconds|latency)([^a-z]|$)", re.IGNORECASE)


@click.command()
@json_option
def start(as_json: bool) -> None:
    """Start the servers, run the pipeline, and show the model in production.

    With nothing changed, nothing is trained again.

    \b
    Example:  workshop start
    """
    from dvc_parallel import lines

    from workshop.data.prepare import load_or_make
    from workshop.models.registry import production
    from workshop.servers import supervision
    from workshop.servers.pipeline import reproduce

    click.echo("Servers", err=True)
    settings = supervision.up(tell)
    click.echo("Pipeline", err=True)
    progress = lines(lambda text: click.echo(text, nl=False, err=True))
    reproduce(settings, folder=settings.pipeline, progress=progress, notice=tell)
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
    click.echo("\nNext: open the dashboard; for the workshop type `make lab`. `make stop` ends the servers.")


def _words(serving) -> str:
    """Say in a line which model is in production."""
    if serving is None:
        return "none: the gate refused every model so far (4_pipeline/results/decision.json)"
    r2 = "unknown" if serving.r2 is None else f"{serving.r2:.3f}"
    return f"{serving.name} version {serving.version} ({serving.stage or 'registered by hand'}), held-out R2 {r2}"


@click.command()
@click.argument("targets", nargs=-1)
@click.option(
    "-j", "--jobs", type=click.IntRange(min=1), help="Most stages at once; by default what the cluster has room for."
)
@click.option("-f", "--force", is_flag=True, help="Run stages that did not change, too.")
@click.option("-P", "--all-pipelines", is_flag=True, help="Run all pipelines of the repository.")
def repro(targets: tuple[str, ...], **options) -> None:
    """Run what changed of the pipeline, stages that do not need one another side by side.

    It leaves what `dvc repro` leaves: the same files, the same dvc.lock. TARGETS are stages, as DVC names them; by
    default all of the dvc.yaml here, or of the chapter's pipeline.

    \b
    Example:  workshop repro compare
    """
    from dvc_parallel import lines

    from workshop.servers.pipeline import reproduce
    from workshop.settings import get_settings

    settings = get_settings()
    folder = Path.cwd() if Path("dvc.yaml").exists() or targets or options["all_pipelines"] else settings.pipeline
    progress = lines(lambda text: click.echo(text, nl=False, err=True))
    reproduce(settings, targets, shell_first=True, folder=folder, progress=progress, notice=tell, **options)


@click.command()
@click.argument("notebook", type=click.Path(dir_okay=False, path_type=Path))
@click.option("-p", "parameters", nargs=2, multiple=True, metavar="NAME VALUE", help="A parameter of all runs.")
@click.option("--sweep", "sweeps", multiple=True, metavar="NAME=1,2,3", help="A run for each value, and combination.")
@click.option("--output", type=click.Path(file_okay=False, path_type=Path), help="Folder of the executed notebooks.")
@click.option("--rank-by", metavar="METRIC", help="Show the best first; METRIC:min or METRIC:max says what is best.")
@json_option
def run(notebook: Path, parameters, sweeps, output: Path | None, rank_by: str | None, as_json: bool) -> None:
    """Run NOTEBOOK on the cluster, once or for each combination of parameters.

    Each run is a notebook of its own; the table shows the metrics of its MLflow runs.

    \b
    Example:  workshop run notebooks/train_rf.ipynb --sweep max_depth=8,10,12 --rank-by r2
    """
    from workshop.errors import EngineError
    from workshop.ownership import use_own_servers

    use_own_servers()
    from papermill_dask import combinations, read_parameter, run_many

    metric, least_first = _rank(rank_by) if rank_by else (None, False)  # a mistake is told before anything runs
    fixed = {name: read_parameter(value) for name, value in parameters}
    done = run_many(notebook, [fixed | chosen for chosen in combinations(sweeps)], output, tell=tell)
    if metric:
        sign = 1 if least_first else -1
        done.runs.sort(key=lambda row: sign * _number(row.metrics.get(metric), sign * math.inf))
    print_rows([_as_json(row) for row in done.runs] if as_json else done.table(), as_json)
    for failed in done.failed:
        tell(f"failed: {failed.output}: {failed.error}")
    known = sorted({name for row in done.runs for name in row.metrics})
    if metric and metric not in known and not done.exit_code:  # told after the table, which shows what there is
        raise EngineError(
            "No run has the metric to rank by.",
            value=metric,
            expected=f"one of {', '.join(known)}" if known else "a notebook that logs metrics to an MLflow run",
            next_step="see the table: all that ran is kept",
        )
    raise SystemExit(done.exit_code)


def _number(value: float | None, instead: float) -> float:
    """Return a number, or another one where it is none."""
    return instead if value is None or math.isnan(value) else value


def _as_json(run) -> dict:
    """Return all there is to know of a run, as JSON can hold it: no NaN, no infinity."""

    def finite(values: dict) -> dict:
        bad = {name for name, value in values.items() if isinstance(value, float) and not math.isfinite(value)}
        return {name: None if name in bad else value for name, value in values.items()}

    return {
        "parameters": finite(run.parameters),
        "status": str(run.status),
        "seconds": run.seconds,
        "metrics": finite(run.metrics),
        "error": run.error,
        "notebook": str(run.output),
        "run_ids": run.run_ids,
    }


def _rank(rank_by: str) -> tuple[str, bool]:
    """Return the metric to rank by, and whether its least value is the best."""
    metric, colon, best = rank_by.rpartition(":")
    if not colon:
        return rank_by, bool(LOWER_IS_BETTER.search(rank_by))
    if not metric or best not in ("min", "max"):
        raise click.BadParameter(f"{rank_by} is not METRIC, METRIC:min or METRIC:max", param_hint="--rank-by")
    return metric, best == "min"


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
    import yaml

    from workshop.parameters import STAGES, allowed, read, read_stage
    from workshop.settings import get_settings

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


@click.command("tracking-store")
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
