"""An MLflow artifact store on FTP servers, with atomic uploads and verified downloads.

The modules `mlflow_ftp.repository` (the store), `mlflow_ftp.artifact_errors` and `mlflow_ftp.server` are public, too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlflow_ftp import names

if TYPE_CHECKING:
    from mlflow_ftp.repository import FTPArtifactRepository

__all__ = ["names", "open_repository"]

# Import the store on first use: it needs an MLflow class, and MLflow loads plugins before its own import completes.


def open_repository(artifact_uri: str, **servers: str | None) -> FTPArtifactRepository:
    """Return the artifact store of an `ftp` or `ftps` URI; MLflow calls this function.

    Parameters
    ----------
    artifact_uri : str
        The URI, without user and password.
    **servers : str, optional
        The URIs of the tracking server and the registry; MLflow's version determines which are passed.

    Raises
    ------
    ArtifactError
        If the URI is invalid.
    """
    from mlflow_ftp.repository import FTPArtifactRepository

    return FTPArtifactRepository(artifact_uri, **servers)
