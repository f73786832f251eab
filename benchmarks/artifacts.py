"""Compare our FTP artifact store with MLflow's, for small files and for a large one, at two latencies."""

from __future__ import annotations

import contextlib
import functools
import os
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1] / "packages" / "mlflow-ftp" / "tests"))

from relay import ADDRESS, relaying

from benchmarks.clone import Clone
from benchmarks.measure import Side
from benchmarks.table import Row

TITLE = "Artifacts"
SMALL, SMALL_BYTES, LARGE_BYTES = 300, 10_000, 300_000_000
NEAR, FAR = 0.0, 0.02  # seconds added to each round trip
SIDES = {"stock": "MLflow's FTP store", "ours": "ours"}


def side_names(size: str, round_trip: float) -> tuple[str, ...]:
    """Return the names of the two sides of a comparison."""
    return tuple(f"{side}, {size}, {1000 * round_trip:g} ms" for side in SIDES.values())


ROWS = (
    Row("upload of 300 small files", *side_names("small", NEAR)),
    Row("upload of 300 small files, 20 ms per round trip", *side_names("small", FAR)),
    Row("upload and download of 300 MB", *side_names("large", NEAR)),
    Row("upload and download of 300 MB, 20 ms per round trip", *side_names("large", FAR)),
)

# Each side runs in a separate process, like a training run, and reads the password from the settings.
PROGRAM = """
import os, sys, tempfile, time
from workshop.settings import get_settings
side, host, size, source = sys.argv[1:]
settings = get_settings()
if side == "stock":
    from mlflow.store.artifact.ftp_artifact_repo import FTPArtifactRepository as Repository
    user, password = settings.credentials()
    login = f"{user}:{password.get_secret_value()}@"
else:
    from mlflow_ftp.repository import FTPArtifactRepository as Repository
    os.environ |= settings.ftp_environment()
    login = ""
store = Repository(f"ftp://{login}{host}:{settings.ftp_port}/mlflow/bench-{side}-{size}")
start = time.perf_counter()
if size == "small":
    store.log_artifacts(source)
else:
    store.log_artifact(source + "/large")
    with tempfile.TemporaryDirectory() as folder:
        store.download_artifacts("large", folder)
print(time.perf_counter() - start)
"""


def sides(clone: Clone) -> list[Side]:
    """Return two sides for each row, one per store."""
    folders = {size: clone.new_folder(size) for size in ("small", "large")}
    for number in range(SMALL):
        (folders["small"] / f"{number}.bin").write_bytes(os.urandom(SMALL_BYTES))
    (folders["large"] / "large").write_bytes(os.urandom(LARGE_BYTES))
    return [
        Side(name, functools.partial(run, clone, side, size, folders[size], round_trip))
        for size, round_trip in (("small", NEAR), ("small", FAR), ("large", NEAR), ("large", FAR))
        for side, name in zip(SIDES, side_names(size, round_trip), strict=True)
    ]


def run(clone: Clone, side: str, size: str, source: Path, round_trip: float) -> float:
    """Upload the files (and download the large one) in a new process; return the seconds, excluding imports."""
    settings = clone.settings
    with contextlib.ExitStack() as stack:
        host, environment = "127.0.0.1", dict(clone.environment)
        if round_trip:
            stack.enter_context(relaying([settings.ftp_port, *settings.ftp_passive_ports], round_trip / 2))
            host = environment["WORKSHOP_HOST"] = ADDRESS
        command = (sys.executable, "-c", PROGRAM, side, host, size, str(source))
        return float(clone.do(*command, environment=environment).split()[-1])
