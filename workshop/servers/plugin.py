"""MLflow's door to the artifact store; light, because each `import mlflow` comes through it."""

from __future__ import annotations


def open_repository(artifact_uri: str, tracking_uri: str | None = None, registry_uri: str | None = None):
    """Return the store at an address of the scheme `ftp` or `ftps`; raise ArtifactError when it cannot be used.

    MLflow loads its plugins in the middle of its own import. The store's class has a base in MLflow, so it is
    imported only when the first store is opened.
    """
    from workshop.servers.artifacts.repository import FTPArtifactRepository

    return FTPArtifactRepository(artifact_uri, tracking_uri, registry_uri)


def open_proxied(artifact_uri: str, tracking_uri: str | None = None, registry_uri: str | None = None):
    """Return the store at an address of the scheme `mlflow-artifacts`, which is the tracking server's."""
    from workshop.servers.artifacts.proxied import ProxiedArtifactRepository

    return ProxiedArtifactRepository(artifact_uri, tracking_uri, registry_uri)
