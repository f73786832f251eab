"""Runs that carry their lineage: commit, hashes of the data, stage."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import pooch
import yaml
from mlflow_gate.lineage import EXPERIMENT_TAG, OVERRIDES_TAG, run_program
from mlflow_gate.registry import experiment_of_dvc
from papermill_dask import COMMIT_TAG, git_state

from forecast.table.schema import STAMP
from forecast.raw.sources import Origin, origin_of
from workshop.fingerprint import fingerprint
from forecast.store import connect
from forecast.problem import EXPERIMENT
from workshop.settings import STAGE_TAG, get_settings

if TYPE_CHECKING:
    import mlflow
    from plotly.graph_objects import Figure

    from workshop.pipeline import Stage

DATA_TAG = "workshop.data."  # and a file's name: its hash
LEARNED_TAG = "workshop.learned."  # and one of: table, first, last, hours, source, modelled
DIRTY_TAG = "workshop.git.dirty"
CODE_TAG = "workshop.code"  # the fingerprint of what the stage imports of this package
LOCAL_LOCK = "dvc.lock"  # names this machine's tracking store, so a change of it alone does not make a tree dirty


@contextlib.contextmanager
def start_run(
    stage: str, *, data: Iterable[Path | str] = (), learned_from: Path | None = None,
    parameters: dict[str, Any] | None = None, code: str | None = None,
) -> Iterator[mlflow.ActiveRun]:  # fmt: skip
    """Open a run of the experiment that carries its lineage; end it with the block, as failed when the block raises.

    ``data`` are the files that the run reads: their DVC hashes become the tags ``workshop.data.<name>``. ``code`` is
    the fingerprint of what the stage imports of this package.
    ``learned_from`` is the processed table that its model learns from: name, hours and source of the table become the
    tags ``workshop.learned.<...>``, by which the gate knows that held-out hours are new to the model. In a notebook a
    link to the run is shown, too.
    """
    client = connect()
    import mlflow

    mlflow.set_experiment(EXPERIMENT)
    hashes = {DATA_TAG + Path(file).name: pooch.file_hash(file, "md5") for file in data}
    tags = {STAGE_TAG: stage} | hashes | (learned_tags(learned_from) if learned_from else {}) | git_tags()
    tags |= {CODE_TAG: code} if code else {}
    tags |= experiment_tags()
    with mlflow.start_run(run_name=stage, tags=tags) as run:
        if parameters:
            client.log_batch(run.info.run_id, params=[mlflow.entities.Param(k, str(v)) for k, v in parameters.items()])
        show_run(run.info.run_id)
        yield run


def start_stage(
    stage: Stage, *, data: Iterable[Path], learned_from: Path | None = None
) -> contextlib.AbstractContextManager[mlflow.ActiveRun]:
    """Open the run of a stage: `start_run` with its name, its parameters and its code."""
    parameters, code = stage.parameters.model_dump(), fingerprint(stage.code)
    return start_run(stage.name, data=data, learned_from=learned_from, parameters=parameters, code=code)


def experiment_tags(folder: Path | None = None) -> dict[str, str]:
    """Return the experiment of DVC in which this runs, and the parameters that it changed; nothing outside one.

    Changed is what differs from the commit's params.yaml in ``folder``, by default the working folder.
    """
    name = experiment_of_dvc()
    if name is None:
        return {}
    folder = folder or Path.cwd()
    now, then = (folder / "params.yaml"), run_program("git", "show", "HEAD:./params.yaml", folder=folder)
    if then is None or not now.is_file():
        return {EXPERIMENT_TAG: name}
    ours, committed = (pd.json_normalize(yaml.safe_load(text)).T[0].to_dict() for text in (now.read_text(), then))
    changed = [f"{key}={value}" for key, value in sorted(ours.items()) if committed.get(key) != value]
    return {EXPERIMENT_TAG: name, OVERRIDES_TAG: ", ".join(changed) or "none"}


def learned_tags(file: Path) -> dict[str, str]:
    """Return the tags of a run whose model learns from the processed table ``file``."""
    table = pd.read_parquet(file, columns=["utc_timestamp"])
    stamps, source = table["utc_timestamp"], origin_of(table)
    facts = {
        "table": Path(file).name,
        "first": f"{stamps.min():{STAMP}}",
        "last": f"{stamps.max():{STAMP}}",
        "hours": len(table),
        "source": source.source,
        "modelled": str(source.modelled).lower(),
    }
    return {LEARNED_TAG + name: str(value) for name, value in facts.items()}


def learned(tags: Mapping[str, str]) -> tuple[str, str] | None:
    """Return the first and the last hour that a run's model learned from, if its tags say so in the form `STAMP`."""
    first, last = (tags.get(LEARNED_TAG + end, "") for end in ("first", "last"))
    try:
        # Parsed and formatted again: strptime takes other forms, too, and those would not sort as text.
        known = all(datetime.strptime(end, STAMP).strftime(STAMP) == end for end in (first, last))  # noqa: DTZ007
    except ValueError:
        return None
    return (first, last) if known and first <= last else None


def learned_hash(tags: Mapping[str, str]) -> str | None:
    """Return the hash of the table that a run's model learned from, if its tags say so."""
    return tags.get(DATA_TAG + tags.get(LEARNED_TAG + "table", ""))


def learned_from(tags: Mapping[str, str]) -> str | None:
    """Return the name of the source of a run's data, if its tags say so: `modelled sample`, `opsd`, `csv`."""
    source, modelled = (tags.get(LEARNED_TAG + name) for name in ("source", "modelled"))
    return Origin(source=source, modelled=modelled == "true").label if source else None


def log_explanations(**figures: Figure) -> None:
    """Log plotly figures to the active run as `explanations/NAME.html`, for people, and `.json`, for the dashboard."""
    import mlflow

    for name, figure in figures.items():
        mlflow.log_figure(figure, f"explanations/{name}.html")
        mlflow.log_text(figure.to_json(), f"explanations/{name}.json")


def run_url(run_id: str, experiment_id: str) -> str:
    """Return the page of a run in the MLflow UI."""
    return f"{get_settings().tracking_uri}/#/experiments/{experiment_id}/runs/{run_id}"


def show_run(run_id: str) -> None:
    """Show a link to a run in the notebook."""
    import mlflow
    from IPython import get_ipython
    from IPython.display import display

    if get_ipython() is None:
        return
    run = mlflow.get_run(run_id)
    url = run_url(run_id, run.info.experiment_id)
    display(
        {
            "text/html": f'MLflow run <a href="{url}">{run.info.run_name}</a>',
            "text/plain": f"MLflow run {run.info.run_name}: {url}",
        },
        raw=True,
    )


def git_tags(folder: Path | None = None) -> dict[str, str]:
    """Return the commit and whether tracked files differ from it; empty outside a git repository.

    In a kernel on the cluster they are those of the client's folder: a worker may have no repository, or another one
    than that in which DVC runs an experiment (`dvc exp run --temp`).
    """
    if (state := git_state(folder or get_settings().root)) is None:
        return {}
    commit, changes = state
    return {COMMIT_TAG: commit, DIRTY_TAG: str(any(not file.endswith(LOCAL_LOCK) for file in changes)).lower()}
