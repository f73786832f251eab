"""A run whose owner dies does not stay RUNNING: a heart beats beside the owner, and the server listens for it.

The heart is a process of its own: a thread would stand still while the owner computes in C. It ends the run as soon as
its owner dies. Where both are gone (a machine without power), the reaper in the tracking server ends the run once the
beats stop coming; if they come again (a laptop that slept), the heart brings the run back to life.

Both speak MLflow's REST interface (https://mlflow.org/docs/latest/api_reference/rest-api.html): importing MLflow would
take each heart over a second and 150 MB.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import requests

BEAT_SECONDS = 5.0
WATCH_SECONDS = 0.5
SILENT_SECONDS = 40.0  # eight beats
ANSWER_SECONDS = 10.0
BEAT_TAG, ENDED_TAG = "workshop.heartbeat", "workshop.ended_by"
REAPER, OWNER_DIED = "reaper", "death of its owner"
RESTART_SECONDS = 1.0

logger = logging.getLogger(__name__)


class Runs:
    """The few calls of MLflow's interface that are needed here; each raises requests' errors."""

    def __init__(self, uri: str) -> None:
        self._uri = uri.rstrip("/")
        self._session = requests.Session()
        if user := os.environ.get("MLFLOW_TRACKING_USERNAME"):
            self._session.auth = user, os.environ.get("MLFLOW_TRACKING_PASSWORD", "")

    def get(self, run_id: str) -> dict[str, Any]:
        """Return a run."""
        return self._call("GET", "runs/get", params={"run_id": run_id})["run"]

    def tag(self, run_id: str, key: str, value: str) -> None:
        """Set a tag."""
        self._call("POST", "runs/set-tag", json={"run_id": run_id, "key": key, "value": value})

    def end(self, run_id: str, ended_by: str) -> None:
        """End a run as failed, and say who did it."""
        self.tag(run_id, ENDED_TAG, ended_by)
        self._call(
            "POST", "runs/update", json={"run_id": run_id, "status": "FAILED", "end_time": int(time.time() * 1000)}
        )

    def revive(self, run_id: str) -> None:
        """Undo `end`."""
        self._call("POST", "runs/update", json={"run_id": run_id, "status": "RUNNING"})
        self._call("POST", "runs/delete-tag", json={"run_id": run_id, "key": ENDED_TAG})

    def beating(self) -> dict[str, str]:
        """Return the latest beat of each run that is RUNNING and has ever had one."""
        experiments = self._call("POST", "experiments/search", json={"max_results": 1000}).get("experiments", [])
        query = {
            "experiment_ids": [experiment["experiment_id"] for experiment in experiments],
            "filter": f"attributes.status = 'RUNNING' AND tags.`{BEAT_TAG}` != ''",
            "max_results": 1000,
        }
        runs = self._call("POST", "runs/search", json=query).get("runs", []) if experiments else []
        return {run["info"]["run_id"]: tags_of(run)[BEAT_TAG] for run in runs}

    def _call(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        answer = self._session.request(method, f"{self._uri}/api/2.0/mlflow/{path}", timeout=ANSWER_SECONDS, **options)
        answer.raise_for_status()
        return answer.json()


def tags_of(run: dict[str, Any]) -> dict[str, str]:
    """Return a run's tags."""
    return {tag["key"]: tag["value"] for tag in run["data"].get("tags", [])}


# -- beside the owner ----------------------------------------------------------------------------------------------
@contextlib.contextmanager
def heartbeat(run_id: str, uri: str) -> Iterator[None]:
    """Have a heart beat for a run of the server at ``uri`` until the block ends, however it ends."""
    over = threading.Event()
    hearts: list[subprocess.Popen] = []

    def keep_one() -> None:
        while not over.is_set():
            with _start_heart(run_id, uri) as heart:
                hearts.append(heart)
                if over.is_set():
                    heart.terminate()
                heart.wait()
            over.wait(RESTART_SECONDS)

    keeper = threading.Thread(target=keep_one, name="heartbeat", daemon=True)
    keeper.start()
    try:
        yield
    finally:
        over.set()
        for heart in hearts[-1:]:
            heart.terminate()
        keeper.join(ANSWER_SECONDS)


def _start_heart(run_id: str, uri: str) -> subprocess.Popen:
    program = "from workshop.models.heartbeat import main; main()"
    return subprocess.Popen(
        [sys.executable, "-c", program, uri, run_id, str(os.getpid())],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )


def main() -> None:
    """Beat until the owner dies, then end its run; the arguments are address, run and owner's process id."""
    uri, run_id, owner = sys.argv[1], sys.argv[2], int(sys.argv[3])
    runs = Runs(uri)
    for beat in itertools.count():
        with contextlib.suppress(requests.RequestException):
            _beat(runs, run_id, beat)
        until = time.monotonic() + BEAT_SECONDS
        while time.monotonic() < until:
            if os.getppid() != owner:
                _end(runs, run_id)
                return
            select.select([], [], [], WATCH_SECONDS)


def _beat(runs: Runs, run_id: str, beat: int) -> None:
    runs.tag(run_id, BEAT_TAG, f"{beat} at {time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())}")
    run = runs.get(run_id)
    if run["info"]["status"] != "RUNNING" and tags_of(run).get(ENDED_TAG) == REAPER:
        runs.revive(run_id)


def _end(runs: Runs, run_id: str) -> None:
    """End the run of an owner that is dead, if nobody has; a server that is down meanwhile is asked again."""
    for _ in range(int(SILENT_SECONDS / BEAT_SECONDS)):
        with contextlib.suppress(requests.RequestException):
            if runs.get(run_id)["info"]["status"] == "RUNNING":
                runs.end(run_id, OWNER_DIED)
            return
        time.sleep(BEAT_SECONDS)


# -- in the tracking server ----------------------------------------------------------------------------------------
class Reaper:
    """Ends runs whose beats have stopped. It goes by when *it* heard them: clocks of two machines differ."""

    def __init__(self, runs: Runs, silent_seconds: float = SILENT_SECONDS) -> None:
        self._runs, self._silent = runs, silent_seconds
        self._heard: dict[str, tuple[str, float]] = {}

    def look(self) -> list[str]:
        """Look once; return the runs that were ended."""
        beats, now = self._runs.beating(), time.monotonic()
        self._heard = {
            run_id: self._heard[run_id] if self._heard.get(run_id, ("", 0))[0] == beat else (beat, now)
            for run_id, beat in beats.items()
        }
        silent = [run_id for run_id, (_, since) in self._heard.items() if now - since > self._silent]
        for run_id in silent:
            self._runs.end(run_id, REAPER)
            logger.warning("Run %s ended: nothing was heard of its owner for %g s.", run_id, self._silent)
        return silent


def start_reaper(uri: str) -> None:
    """Look every few seconds, in a thread, as long as this process lives."""

    def look_on() -> None:
        reaper = Reaper(Runs(uri))
        while True:
            time.sleep(BEAT_SECONDS)
            with contextlib.suppress(requests.RequestException):
                reaper.look()

    threading.Thread(target=look_on, name="reaper", daemon=True).start()
