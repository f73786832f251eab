"""Keep MLflow's artifacts on an FTP server, whole or not at all, and checked on read.

MLflow loads its plugins in the middle of its own import, and the store's classes have bases in MLflow: so they are
imported when the first one is asked for.
"""

from __future__ import annotations

from importlib import import_module

from mlflow_ftp import names

__all__ = [
    "ArtifactDamaged",
    "ArtifactError",
    "ArtifactMissing",
    "ArtifactNameRefused",
    "FTPArtifactRepository",
    "StoreRefused",
    "StoreUnavailable",
    "names",
    "open_repository",
]


def open_repository(artifact_uri: str, tracking_uri: str | None = None, registry_uri: str | None = None):
    """Return the store at an address of the scheme `ftp` or `ftps`; raise ArtifactError when it cannot be used."""
    from mlflow_ftp.repository import FTPArtifactRepository

    return FTPArtifactRepository(artifact_uri, tracking_uri, registry_uri)


def __getattr__(name: str):
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("mlflow_ftp.repository"), name)
