"""SQLite tracking stores without a server: atomic creation, and artifacts where `mlflow server` keeps them."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from mlflow.store.artifact.artifact_repo import ArtifactRepository

SCHEME = "sqlite:///"
ARTIFACTS = "mlartifacts"  # default of `mlflow server --artifacts-destination`


def file_of(uri: str) -> Path | None:
    """Return the file of a SQLite URI; None for other databases and in-memory SQLite.

    >>> file_of("sqlite:////srv/mlflow.db?timeout=60")
    PosixPath('/srv/mlflow.db')
    """
    name = uri.removeprefix(SCHEME).partition("?")[0]
    return Path(name).absolute() if uri.startswith(SCHEME) and name not in ("", ":memory:") else None


def make(uri: str) -> None:
    """Create a new SQLite store atomically: its file appears with all tables, or not at all.

    If two processes create a store at once, MLflow itself fails or creates only some of the tables.
    """
    import mlflow

    if (file := file_of(uri)) is None or file.exists():
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f"{file.name}.", dir=file.parent) as folder:
        mlflow.MlflowClient(f"{SCHEME}{folder}/{file.name}")
        with contextlib.suppress(FileExistsError):  # another process has created the file
            os.link(Path(folder, file.name), file)


def open_repository(artifact_uri: str, tracking_uri: str | None = None, **registry: str | None) -> ArtifactRepository:
    """Return the artifact repository of an `mlflow-artifacts` URI; MLflow itself would need a server for it.

    If there is an `mlartifacts` folder beside the SQLite file, the URI maps to a folder in it.
    """
    import mlflow
    from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository
    from mlflow.store.artifact.mlflow_artifacts_repo import MlflowArtifactsRepository

    file, parts = file_of(tracking_uri or mlflow.get_tracking_uri()), urlsplit(artifact_uri)
    if file and not parts.netloc and (folder := file.with_name(ARTIFACTS)).is_dir():
        return LocalArtifactRepository(folder.as_uri() + parts.path)
    return MlflowArtifactsRepository(artifact_uri, tracking_uri, **registry)
