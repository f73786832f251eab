"""Keep MLflow's artifacts on an FTP server, whole or not at all, and checked on read.

Public are also `mlflow_ftp.repository` (the stores), `mlflow_ftp.artifact_errors` and `mlflow_ftp.server`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlflow_ftp import names

if TYPE_CHECKING:
    from mlflow_ftp.repository import FTPArtifactRepository, ProxiedArtifactRepository

__all__ = ["names", "open_proxied", "open_repository"]

# MLflow loads its plugins in the middle of its own import. The classes of the stores have bases in MLflow, so they are
# imported only when the first store is opened.


def open_repository(artifact_uri: str, **servers: str | None) -> FTPArtifactRepository:
    """Return the store at an address of the scheme `ftp` or `ftps`; raise ArtifactError when it cannot be used.

    ``servers`` are the tracking server and the registry, as far as the installed MLflow names them.
    """
    from mlflow_ftp.repository import FTPArtifactRepository

    return FTPArtifactRepository(artifact_uri, **servers)


def open_proxied(artifact_uri: str, **servers: str | None) -> ProxiedArtifactRepository:
    """Return the store at an address of the scheme `mlflow-artifacts`, which sends eight files of a folder in parallel.

    The artifacts are the tracking server's, whatever store it uses. MLflow calls this only if an entry point of an
    installed package names it: one of `mlflow-ftp` would change the scheme for everyone.
    """
    from mlflow_ftp.repository import ProxiedArtifactRepository

    return ProxiedArtifactRepository(artifact_uri, **servers)
