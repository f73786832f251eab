"""Artifacts that go through the tracking server: MLflow's own client for that, but several files at once."""

from __future__ import annotations

import posixpath
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mlflow.store.artifact.mlflow_artifacts_repo import MlflowArtifactsRepository

AT_ONCE = 8


class ProxiedArtifactRepository(MlflowArtifactsRepository):
    """The scheme ``mlflow-artifacts``; MLflow's own sends one file after the other, and waits for each."""

    def log_artifacts(self, local_dir: str, artifact_path: str | None = None) -> None:
        """Store all files of ``local_dir`` in the folder ``artifact_path``; raise what the first that fails raises."""
        top = Path(local_dir)
        files = sorted(file for file in top.rglob("*") if file.is_file())
        with ThreadPoolExecutor(AT_ONCE, "store") as pool:
            futures = [pool.submit(self.log_artifact, str(file), _folder(file, top, artifact_path)) for file in files]
            try:
                for future in futures:
                    future.result()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise


def _folder(file: Path, top: Path, artifact_path: str | None) -> str | None:
    """Return where a file goes; None for the top."""
    inner = file.parent.relative_to(top).as_posix()
    return artifact_path if inner == "." else posixpath.join(artifact_path or "", inner)
