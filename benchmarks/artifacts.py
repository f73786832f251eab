"""Artifacts on the FTP server, against MLflow's own store: small files and a large one, near and far, and by proxy."""

from __future__ import annotations

import contextlib
import functools
import os
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1] / "packages" / "mlflow-ftp" / "tests"))

from relay import ADDRESS, relaying

from benchmarks.measure import Side
from benchmarks.place import Place
from benchmarks.rows import Ratio
from tests.workplace import free_port

TITLE = "Artifacts"
SMALL, SMALL_BYTES, LARGE_BYTES = 300, 10_000, 300_000_000
NEAR, FAR = 0.0, 0.02  # seconds that each round trip takes longer
STOCK, OURS = "MLflow's FTP store", "ours"


def names(what: str, round_trip: float) -> tuple[str, str]:
    """Return what the two sides of a comparison are called."""
    where = f"{what}, {1000 * round_trip:g} ms"
    return f"{STOCK}, {where}", f"{OURS}, {where}"


PROXIED = "small, by proxy"
ROWS = (
    Ratio("300 small files, stored", *names("small", NEAR), 1),
    Ratio("300 small files, stored, each round trip 20 ms longer", *names("small", FAR), 8),
    Ratio("a file of 300 MB, stored and fetched", *names("large", NEAR), 1),
    Ratio("a file of 300 MB, each round trip 20 ms longer", *names("large", FAR)),
    Ratio("300 small files through MLflow's proxy", *names(PROXIED, NEAR), 1),
    Ratio(
        "300 small files through MLflow's proxy, each round trip to the FTP server 20 ms longer",
        *names(PROXIED, FAR),
        8,
    ),
    Ratio("a file of 300 MB through MLflow's proxy, stored and fetched", *names("large, by proxy", NEAR), 1),
)

# Each side is a program of its own, as a training is; both know the password from the settings.
PROGRAM = """
import os, sys, tempfile, time
from workshop.settings import get_settings
side, host, what, source, port = sys.argv[1:]
settings = get_settings()
if side == "stock":
    from mlflow.store.artifact.ftp_artifact_repo import FTPArtifactRepository as Repository
    user, password = settings.credentials()
    login = f"{user}:{password.get_secret_value()}@"
else:
    from mlflow_ftp.repository import FTPArtifactRepository as Repository
    os.environ |= settings.ftp_environment()
    login = ""
address = f"ftp://{login}{host}:{settings.ftp_port}/mlflow/bench-{side}-{what}"
if port == "0":
    store = Repository(address)
else:
    # MLflow's own application, with one store or the other behind its proxy.
    import threading, requests, uvicorn
    from mlflow.store.artifact import artifact_repository_registry as registry
    if side == "stock":
        from mlflow.store.artifact.mlflow_artifacts_repo import MlflowArtifactsRepository as Client
    else:
        from mlflow_ftp.repository import ProxiedArtifactRepository as Client
    registry._artifact_repository_registry.register("ftp", Repository)
    here = f"http://127.0.0.1:{port}"
    os.environ |= {"_MLFLOW_SERVER_SERVE_ARTIFACTS": "true", "_MLFLOW_SERVER_ARTIFACT_DESTINATION": address,
                   "_MLFLOW_SERVER_FILE_STORE": f"sqlite:///{tempfile.mkdtemp(dir=os.path.dirname(source))}/mlflow.db",
                   "MLFLOW_SERVER_DISABLE_SECURITY_MIDDLEWARE": "true"}
    from mlflow.server.fastapi_app import app
    server = uvicorn.Server(uvicorn.Config(app, port=int(port), log_level="warning"))
    threading.Thread(target=server.run, daemon=True).start()
    while not server.started:
        time.sleep(0.1)
    store = Client("mlflow-artifacts:/bench", tracking_uri=here)
began = time.perf_counter()
if what == "small":
    store.log_artifacts(source)
else:
    store.log_artifact(source + "/large")
    with tempfile.TemporaryDirectory() as folder:
        store.download_artifacts("large", folder)
print(time.perf_counter() - began)
"""


def sides(place: Place) -> list[Side]:
    """Return both stores for each thing to store, near and far."""
    folders = {what: place.folder / f"artifacts-{what}" for what in ("small", "large")}
    if not folders["small"].exists():
        for folder in folders.values():
            folder.mkdir()
        for number in range(SMALL):
            (folders["small"] / f"{number}.bin").write_bytes(os.urandom(SMALL_BYTES))
        (folders["large"] / "large").write_bytes(os.urandom(LARGE_BYTES))
    return [
        Side(name, functools.partial(run, place, side, what, folder, round_trip))
        for what, folder in folders.items()
        for round_trip in (NEAR, FAR)
        for side, name in zip(("stock", "ours"), names(what, round_trip), strict=True)
    ] + [
        Side(name, functools.partial(run, place, side, what, folders[what], round_trip, by_proxy=True))
        for what, round_trip in (("small", NEAR), ("small", FAR), ("large", NEAR))
        for side, name in zip(("stock", "ours"), names(f"{what}, by proxy", round_trip), strict=True)
    ]


def run(
    place: Place, side: str, what: str, source: Path, round_trip: float, *, by_proxy: bool = False
) -> dict[str, float]:
    """Store, and fetch, in one program; return the seconds without its imports."""
    settings = place.settings
    with contextlib.ExitStack() as stack:
        host, environment = "127.0.0.1", dict(place.environment)
        if round_trip:
            stack.enter_context(relaying([settings.ftp_port, *settings.ftp_passive_ports], round_trip / 2))
            host = environment["WORKSHOP_HOST"] = ADDRESS
        port = str(free_port() if by_proxy else 0)
        said = place.do(sys.executable, "-c", PROGRAM, side, host, what, str(source), port, environment=environment)
    return {"seconds": float(said.split()[-1])}


def settle(place: Place) -> None:
    """Let each program run once."""
    for side in sides(place)[:2]:
        side.run()
