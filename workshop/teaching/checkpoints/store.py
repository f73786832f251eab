"""What the tracking store tells: runs, registered models, their versions and the moves of the alias.

It is asked over MLflow's REST interface, in a few requests however many runs there are: importing MLflow takes longer
than all of them. https://mlflow.org/docs/latest/api_reference/rest-api.html
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from workshop.errors import ServiceError
from workshop.models.registry import Move, moves_of
from workshop.models.tracking import ANSWER_SECONDS, STAGE_TAG, STORE_ID_TAG, check_address, own_or_given_uri
from workshop.settings import EXPERIMENT, EXPORT, PRODUCTION, REGISTERED_MODEL, Settings

BROUGHT_TAG = "workshop.brought"  # of what `workshop up --chapter` made: who made it
SOURCE_TYPE_TAG = "mlflow.source.type"
SEARCH_SECONDS = 10.0  # a search on a busy machine; whether the server answers at all is asked first
MOST_RUNS = 2000  # of each kind; the latest ones
MOST_MODELS = 1000
QUERIES = {
    "chapter": "tags.chapter = '2'",
    "project": f"tags.`{SOURCE_TYPE_TAG}` = 'PROJECT'",
    "stage": f"tags.`{STAGE_TAG}` LIKE 'train%' AND attributes.status = 'FINISHED'",
}


@dataclass(frozen=True)
class Run:
    """One run; ``models`` are the ids of the models that it logged."""

    run_id: str
    experiment: str = EXPERIMENT
    status: str = "FINISHED"
    models: tuple[str, ...] = ()
    params: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    @property
    def finished(self) -> bool:
        """Whether it came to its end."""
        return self.status == "FINISHED"

    @property
    def in_place(self) -> bool:
        """Whether it came to its end, in the workshop's experiment."""
        return self.finished and self.experiment == EXPERIMENT

    @property
    def parent(self) -> str | None:
        """The id of the run that it lies under."""
        return self.tags.get("mlflow.parentRunId")


@dataclass(frozen=True)
class Version:
    """One version of a registered model, and the run and the logged model that it is said to come from."""

    model: str
    version: str
    run_id: str | None = None
    source: str = ""
    tags: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Store:
    """What lies in a tracking store that concerns the workshop; runs are in order, the latest one first.

    ``aliases`` are those of each registered model: the model's name, then the alias, then the version.
    """

    uri: str
    identity: str | None = None
    chapter_runs: tuple[Run, ...] = ()
    project_runs: tuple[Run, ...] = ()
    stage_runs: tuple[Run, ...] = ()
    aliases: dict[str, dict[str, str]] = field(default_factory=dict)
    versions: tuple[Version, ...] = ()
    moves: tuple[Move, ...] = ()

    @property
    def in_production(self) -> str | None:
        """The version that the alias `production` points at."""
        return self.aliases.get(REGISTERED_MODEL, {}).get(PRODUCTION)


def look(settings: Settings) -> Store:
    """Ask the tracking server; raise ServiceError, within seconds, when it does not answer."""
    import requests

    uri = own_or_given_uri(settings)
    check_address(uri)
    try:
        with requests.Session() as session:
            return _Asking(session, uri.rstrip("/")).store()
    except (requests.RequestException, ValueError, KeyError, TypeError):  # no answer, or none of MLflow's
        raise ServiceError(
            f"The MLflow tracking server at {uri} does not answer.",
            expected=f"answers within {ANSWER_SECONDS:g} s",
            next_step=_next_step(settings),
        ) from None


def _next_step(settings: Settings) -> str:
    """Say what to type; a shell may still hold the address that the servers had before."""
    here = settings.exports()["MLFLOW_TRACKING_URI"]
    return "workshop up" if here == settings.tracking_uri else EXPORT


@dataclass(frozen=True)
class _Asking:
    session: Any
    uri: str

    def store(self) -> Store:
        self.session.get(f"{self.uri}/health", timeout=ANSWER_SECONDS).raise_for_status()
        experiments = self._get("experiments/search", "experiments", max_results=MOST_MODELS)
        names = {each["experiment_id"]: each["name"] for each in experiments}
        tags = next((_pairs(each.get("tags")) for each in experiments if each["name"] == EXPERIMENT), {})
        kinds = {kind: tuple(self._runs(names, query)) for kind, query in QUERIES.items()}
        models = self._get("registered-models/search", "registered_models", max_results=MOST_MODELS)
        aliases = {
            each["name"]: {one["alias"]: str(one["version"]) for one in each.get("aliases", [])} for each in models
        }
        versions = tuple(
            Version(
                model=each["name"],
                version=str(each["version"]),
                run_id=each.get("run_id") or None,
                source=each.get("source", ""),
                tags=_pairs(each.get("tags")),
            )
            for each in self._get("model-versions/search", "model_versions", max_results=MOST_RUNS)
        )
        ours = [version for version in versions if version.model == REGISTERED_MODEL]
        return Store(
            uri=self.uri,
            identity=tags.get(STORE_ID_TAG),
            chapter_runs=kinds["chapter"],
            project_runs=kinds["project"],
            stage_runs=kinds["stage"],
            aliases=aliases,
            versions=versions,
            moves=tuple(moves_of(ours, aliases.get(REGISTERED_MODEL, {}).get(PRODUCTION))),
        )

    def _runs(self, names: dict[str, str], query: str) -> Iterator[Run]:
        body = {"experiment_ids": list(names), "filter": query, "max_results": MOST_RUNS}
        answer = self.session.post(f"{self.uri}/api/2.0/mlflow/runs/search", json=body, timeout=SEARCH_SECONDS)
        answer.raise_for_status()
        for run in answer.json().get("runs", []):
            info, data = run["info"], run.get("data", {})
            yield Run(
                run_id=info["run_id"],
                experiment=names[info["experiment_id"]],
                status=info["status"],
                models=tuple(each["model_id"] for each in run.get("outputs", {}).get("model_outputs", [])),
                params=_pairs(data.get("params")),
                metrics=_pairs(data.get("metrics")),
                tags=_pairs(data.get("tags")),
            )

    def _get(self, what: str, key: str, **parameters: object) -> list[dict[str, Any]]:
        answer = self.session.get(f"{self.uri}/api/2.0/mlflow/{what}", params=parameters, timeout=SEARCH_SECONDS)
        answer.raise_for_status()
        return answer.json().get(key, [])


def _pairs(listed: list[dict[str, Any]] | None) -> dict[str, Any]:
    return {each["key"]: each.get("value", "") for each in listed or []}
