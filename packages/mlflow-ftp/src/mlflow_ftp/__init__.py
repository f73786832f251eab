"""Keep MLflow's artifacts on an FTP server, whole or not at all, and checked on read.

Public are also `mlflow_ftp.repository` (the store), `mlflow_ftp.artifact_errors` and `mlflow_ftp.server`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlflow_ftp import names

if TYPE_CHECKING:
    from mlflow_ftp.repository import FTPArtifactRepository

__all__ = ["names", "open_repository"]

# MLflow loads its plugins in the middle of its own import. The class of the store has a base in MLflow, so it is
# imported only when the first store is opened.


def open_repository(artifact_uri: str, **servers: str | None) -> FTPArtifactRepository:
    """Return the store at an address of the scheme `ftp` or `ftps`; raise ArtifactError when it cannot be used.

    ``servers`` are the tracking server and the registry, as far as the installed MLflow names them.
    """
    from mlflow_ftp.repository import FTPArtifactRepository

    return FTPArtifactRepository(artifact_uri, **servers)
