"""Artifacts on the FTP server, against MLflow's own store: small files and a large one, near and far."""

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
NEAR, FAR = 0.0, 0.02  # seconds that each round trip takes longer
SIDES = {"stock": "MLflow's FTP store", "ours": "ours"}


def names(what: str, round_trip: float) -> tuple[str, ...]:
    """Return the names of the two sides of a comparison."""
    return tuple(f"{side}, {what}, {1000 * round_trip:g} ms" for side in SIDES.values())


ROWS = (
    Row("300 small files, stored", *names("small", NEAR)),
    Row("300 small files, stored, each round trip 20 ms longer", *names("small", FAR)),
    Row("a file of 300 MB, stored and fetched", *names("large", NEAR)),
    Row("a file of 300 MB, each round trip 20 ms longer", *names("large", FAR)),
)

# Each side is a program of its own, as a training is; both know the password from the settings.
PROGRAM = """
import os, sys, tempfile, time
from workshop.settings import get_settings
side, host, what, source = sys.argv[1:]
settings = get_settings()
if side == "stock":
    from mlflow.store.artifact.ftp_artifact_repo import FTPArtifactRepository as Repository
    user, password = settings.credentials()
    login = f"{user}:{password.get_secret_value()}@"
else:
    from mlflow_ftp.repository import FTPArtifactRepository as Repository
    os.environ |= settings.ftp_environment()
    login = ""
store = Repository(f"ftp://{login}{host}:{settings.ftp_port}/mlflow/bench-{side}-{what}")
began = time.perf_counter()
if what == "small":
    store.log_artifacts(source)
else:
    store.log_artifact(source + "/large")
    with tempfile.TemporaryDirectory() as folder:
        store.download_artifacts("large", folder)
print(time.perf_counter() - began)
"""


def sides(clone: Clone) -> list[Side]:
    """Return both stores for each row."""
    folders = {what: clone.new_folder(what) for what in ("small", "large")}
    for number in range(SMALL):
        (folders["small"] / f"{number}.bin").write_bytes(os.urandom(SMALL_BYTES))
    (folders["large"] / "large").write_bytes(os.urandom(LARGE_BYTES))
    return [
        Side(name, functools.partial(run, clone, side, what, folders[what], round_trip))
        for what, round_trip in (("small", NEAR), ("small", FAR), ("large", NEAR), ("large", FAR))
        for side, name in zip(SIDES, names(what, round_trip), strict=True)
    ]


def run(clone: Clone, side: str, what: str, source: Path, round_trip: float) -> float:
    """Store, and fetch, in one program; return the seconds without its imports."""
    settings = clone.settings
    with contextlib.ExitStack() as stack:
        host, environment = "127.0.0.1", dict(clone.environment)
        if round_trip:
            stack.enter_context(relaying([settings.ftp_port, *settings.ftp_passive_ports], round_trip / 2))
            host = environment["WORKSHOP_HOST"] = ADDRESS
        words = (sys.executable, "-c", PROGRAM, side, host, what, str(source))
        return float(clone.do(*words, environment=environment).split()[-1])
