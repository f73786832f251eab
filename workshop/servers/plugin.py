"""MLflow's way to our store for `mlflow-artifacts`; light, because each `import mlflow` takes it."""

from __future__ import annotations


def open_proxied(artifact_uri: str, tracking_uri: str | None = None, registry_uri: str | None = None):
    """Return the store at an address of the scheme `mlflow-artifacts`, which is the tracking server's.

    MLflow loads its plugins in the middle of its own import. The store's class has a base in MLflow, so it is
    imported only when the first store is opened.
    """
    from workshop.servers.proxied import ProxiedArtifactRepository

    return ProxiedArtifactRepository(artifact_uri, tracking_uri, registry_uri)
