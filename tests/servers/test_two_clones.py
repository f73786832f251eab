"""Two clones on one machine with the same default ports: runs, versions and alias stay in each clone's own store."""

from __future__ import annotations

import contextlib
import json
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import pytest
from forecast.govern.gate import Registry
from forecast.problem import REGISTERED_MODEL
from forecast.terms.errors import ServiceError
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow_gate import Move
from workplace import (
    BIN,
    PORTS,
    ROOT,
    Servers,
    clean_environment,
    environment_of,
    free_passive_range,
    free_port,
    running,
    wait_for,
)

from workshop import port_owners
from workshop.exports import exports_of
from workshop.servers import supervisor
from workshop.tracking import connect, verified_tracking_uri


@dataclass
class Clone(Servers):
    """A state folder with a tracking server, and the ids that the server acknowledged."""

    runs: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The clone's name, used in all its records."""
        return self.settings.state.name

    @property
    def port(self) -> int:
        """The tracking server's current or last port."""
        return self.settings.mlflow_port

    def workshop(self, *words: str, exit_code: int = 0, **variables: str) -> subprocess.CompletedProcess:
        """Run `workshop ...`; `up` starts only the FTP and the tracking server."""
        words = (*words, "ftp", "mlflow") if words == ("up",) else words
        return self.run(BIN / "workshop", *words, env=self.environment | variables, exit_code=exit_code)

    def status(self) -> dict:
        """The tracking server's row of `workshop status`."""
        rows = json.loads(self.workshop("status", "--json").stdout)["services"]
        return next(row for row in rows if row["name"] == "mlflow")

    def record(self, uri: str | None = None) -> None:
        """Log a run, register a version and promote it, on the server of the settings or at an address."""
        with environment_of(self.environment):
            client = MlflowClient(uri) if uri else connect()
            run = client.create_run("0", tags={"owner": self.name})
            self.runs.append(run.info.run_id)
            with contextlib.suppress(MlflowException):  # it exists already
                client.create_registered_model(REGISTERED_MODEL)
            version = client.create_model_version(REGISTERED_MODEL, run.info.artifact_uri, run.info.run_id).version
            Registry(client).move(Move(0, "promoted", str(version)))

    def check_store(self) -> None:
        """Assert that the database contains all acknowledged records, and none of the other clone."""
        with contextlib.closing(sqlite3.connect(self.settings.database)) as database:
            recorded = dict(database.execute("SELECT run_uuid, value FROM tags WHERE key = 'owner'"))
            assert database.execute("SELECT count(*) FROM model_versions").fetchone() == (len(self.runs),)
        assert recorded == dict.fromkeys(self.runs, self.name)


@pytest.fixture
def clones(tmp_path, new_database) -> Iterator[tuple[Clone, Clone]]:
    """Two stopped clones with the same default ports."""
    ports, both = {f"{name.lower()}_port": free_port() for name in PORTS}, []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "ports.json").write_text(json.dumps(ports))
        environment = clean_environment() | {"WORKSHOP_ROOT": str(ROOT), "WORKSHOP_STATE": str(tmp_path / name)}
        environment["WORKSHOP_FTP_PASSIVE_FIRST"] = str(free_passive_range())
        both.append(Clone(ROOT, environment))
        shutil.copy(new_database, both[-1].settings.database)
    yield tuple(both)
    for clone in both:
        clone.workshop("down")
        assert not port_owners.marked_processes(clone.settings.state)


def test_stopped_clone_leaves_anothers_servers_alone(clones):
    """If another clone uses a stopped clone's ports, every command says so, and none reads or changes its data."""
    first, second = clones
    first.workshop("up")
    first.record()
    shell = exports_of(first.settings)  # a terminal that is still open later
    first.workshop("down")
    second.workshop("up")
    assert second.port == first.port
    second.record()
    (holder,) = port_owners.find_owners(second.settings, second.port).values()
    for variables in (shell, {}):
        done = first.workshop("repro", exit_code=1, **variables)
        assert f"is used by another clone: {second.settings.state}, " in done.stderr
        assert f"process {holder.process.pid}" in done.stderr
        assert "Traceback" not in done.stderr
    row = first.status()
    assert not row["healthy"]
    assert str(second.settings.state) in row["reason"]
    kept = first.settings.ports_file.read_bytes()
    assert f":{second.port}\n" not in first.workshop("config", "--export").stdout.replace("'", "")
    first.settings.ports_file.write_bytes(kept)  # the export had chosen other ports
    with pytest.raises(ServiceError, match="used by another clone"):
        first.record()
    values = first.workshop("check", MLFLOW_TRACKING_URI=second.settings.tracking_uri)
    assert f"tracking server: {second.settings.tracking_uri} (set by MLFLOW_TRACKING_URI)" in values.stderr
    restarted = first.workshop("up")
    assert f"MLflow tracking uses port {first.port}: port {second.port} is used by" in restarted.stderr
    assert str(second.settings.state) in restarted.stderr
    with environment_of(first.environment | shell):  # the old terminal uses the new address
        assert verified_tracking_uri() == first.settings.tracking_uri != shell["MLFLOW_TRACKING_URI"]
    for clone in clones:
        clone.record()
        clone.check_store()


def test_clone_reuses_its_ports(clones):
    """The second clone's ports depend on its folder; after a restart both clones have the same ports again."""
    first, second = clones
    first.workshop("up")
    shell, ports = exports_of(first.settings), first.port
    done = second.workshop("up")
    busy = f"MLflow tracking uses port {second.port}: port {ports} is used by another clone: {first.settings.state}, "
    assert busy in done.stderr
    assert second.port in range(20000, 30000)
    new_port = second.port
    for clone in clones:
        clone.workshop("down")
    for clone in reversed(clones):
        clone.workshop("up")
    assert (first.port, second.port) == (ports, new_port)
    first.record(shell["MLFLOW_TRACKING_URI"])
    for clone in clones:
        clone.record()
        clone.check_store()


def test_clones_that_start_simultaneously_take_different_ports(clones):
    """Both have the same default ports, but choose different ones; `down` of one does not stop the other."""
    first, second = clones
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda clone: clone.workshop("up"), clones))
    assert first.port != second.port
    for clone in clones:
        clone.record()
        clone.check_store()
    first.workshop("down")
    assert second.status()["healthy"]


def test_up_names_the_foreign_owner_of_its_port(clones, tmp_path):
    """If a foreign program answers on our port, `up` fails and names it; supervisor gives up, too."""
    first, _ = clones
    first.workshop("up")
    first.workshop("down", "mlflow")
    (tmp_path / "health").touch()
    listen = [sys.executable, "-m", "http.server", "--bind", "127.0.0.1", first.port]
    with running(listen, first.environment, tmp_path, lambda _: True) as intruder:
        stranger = f"process {intruder.process.pid}"
        wait_for(lambda: port_owners.find_owners(first.settings, first.port))
        done = first.workshop("up", exit_code=1)
        assert f"The port {first.port} is used by" in done.stderr
        assert stranger in done.stderr
        row = first.status()
        assert not row["healthy"]
        assert stranger in row["reason"]
        wait_for(lambda: supervisor.processes(first.settings)["mlflow"]["statename"] == "FATAL", 180)
        first.workshop("down")
        assert stranger in first.workshop("up").stderr
        first.record()
        first.check_store()
