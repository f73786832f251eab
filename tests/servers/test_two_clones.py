"""Two clones on one machine that want the same ports: each one's runs, versions and alias stay in its own store."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import requests
from forecast.errors import ServiceError
from forecast.govern.gate import Registry
from forecast.problem import REGISTERED_MODEL
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
    wait_for,
)

from workshop import port_owners
from workshop.servers import supervisor
from workshop.tracking import connect, own_or_given_uri

PRELOADED = ["workshop.cli", "workshop.servers.supervisor", "requests", "filelock", "supervisor.xmlrpc"]
# What is typed, in a process that is forked with everything imported. The tracking server is the only service: the
# others need time and processors.
TYPE = """
import dataclasses, os, sys
os.environ.clear(), os.environ.update(environment)
sys.stdout = sys.stderr = open(said, "w")
from workshop.cli import main
from workshop.servers import services, supervisor
service = services.SERVICES[1]
if stand_in:
    run = lambda settings: [sys.executable, stand_in, str(settings.mlflow_port), str(settings.database)]
    service = dataclasses.replace(service, command=run)
for module in (services, supervisor):
    module.SERVICES = (service,)
main(words)
"""
# What MLflow does with its port, its file and its time, in a fiftieth of the time.
STAND_IN = """
import http.server, sqlite3, sys, time
store = sqlite3.connect(sys.argv[2], isolation_level=None)
store.execute("CREATE TABLE IF NOT EXISTS records (path)")
time.sleep(0.5)
class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200), self.end_headers()
    def do_POST(self):
        store.execute("INSERT INTO records VALUES (?)", [self.path])
        self.do_GET()
    def log_message(self, *_):
        pass
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Answer).serve_forever()
"""


@dataclass
class Clone(Servers):
    """A state folder with servers, and what was acknowledged to whom works with it."""

    runs: list[str] = field(default_factory=list)
    stand_in: Path | None = None

    @property
    def name(self) -> str:
        """Its name, which stands in all that it records."""
        return self.settings.state.name

    @property
    def port(self) -> int:
        """Where its tracking server is, or was."""
        return self.settings.mlflow_port

    def workshop(self, *words: str, **variables: str) -> subprocess.CompletedProcess:
        """Type `workshop ...`."""
        if words[0] in ("up", "down"):
            (process := self.type(*words)).join()
            return subprocess.CompletedProcess(words, process.exitcode, "", self.said.read_text())
        return self.run(BIN / "workshop", *words, env=self.environment | variables, exit_code=None)

    def type(self, *words: str) -> multiprocessing.Process:
        """Type `workshop ...` and do not wait for its end."""
        values = {"words": words, "environment": self.environment, "said": self.said}
        values["stand_in"] = self.stand_in and str(self.stand_in)
        process = multiprocessing.get_context("forkserver").Process(name=words[0], target=exec, args=(TYPE, values))
        process.start()
        return process

    @property
    def said(self) -> Path:
        """What the last command said that was typed."""
        return Path(f"{self.settings.state}.said")

    def status(self) -> dict[str, dict]:
        """What `workshop status` says, by name."""
        return {row["name"]: row for row in json.loads(self.workshop("status", "--json").stdout)["services"]}

    def record(self) -> None:
        """Log a run, register a version and promote it, on the server at the address that all commands use."""
        with environment_of(self.environment):
            if self.stand_in:
                self.log(own_or_given_uri())
                return
            client = connect()
            run = client.create_run("0", tags={"owner": self.name})
            self.runs.append(run.info.run_id)
            with contextlib.suppress(MlflowException):  # it exists already
                client.create_registered_model(REGISTERED_MODEL)
            version = client.create_model_version(REGISTERED_MODEL, run.info.artifact_uri, run.info.run_id).version
            Registry(client=client)._move(Move(0, "promoted", str(version)))

    def log(self, uri: str) -> None:
        """Have the stand-in at an address record a line."""
        path = f"/{self.name}/{len(self.runs)}"
        requests.post(uri + path, timeout=10).raise_for_status()
        self.runs.append(path)

    def check_store(self) -> None:
        """Check that its database holds what was acknowledged, and nothing of the other clone."""
        with contextlib.closing(sqlite3.connect(self.settings.database)) as database:
            if self.stand_in:
                recorded = {path: path.split("/")[1] for (path,) in database.execute("SELECT path FROM records")}
            else:
                recorded = dict(database.execute("SELECT run_uuid, value FROM tags WHERE key = 'owner'"))
                assert database.execute("SELECT count(*) FROM model_versions").fetchone() == (len(self.runs),)
        assert set(recorded) == set(self.runs)
        assert set(recorded.values()) <= {self.name}


@pytest.fixture
def clones(request, tmp_path, new_database) -> Iterator[tuple[Clone, Clone]]:
    """Two clones, nothing running, that want the same ports."""
    ports = {f"{name.lower()}_port": free_port() for name in PORTS}
    how, both = request.param, []
    multiprocessing.get_context("forkserver").set_forkserver_preload(PRELOADED)
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "ports.json").write_text(json.dumps(ports))
        environment = clean_environment() | {"WORKSHOP_ROOT": str(ROOT), "WORKSHOP_STATE": str(tmp_path / name)}
        environment["WORKSHOP_FTP_PASSIVE_FIRST"] = str(free_passive_range())
        both.append(Clone(ROOT, environment))
        if "stand-in" in how:
            both[-1].stand_in = tmp_path / "mlflow.py"
            both[-1].stand_in.write_text(STAND_IN)
            with contextlib.closing(sqlite3.connect(both[-1].settings.database)) as database:
                database.execute("CREATE TABLE records (path)")
        else:
            shutil.copy(new_database, both[-1].settings.database)
    yield tuple(both)
    for clone in both:
        assert clone.workshop("down").returncode == 0
        assert not port_owners.marked_processes(clone.settings.state)


@pytest.mark.parametrize("clones", ["mlflow"], indirect=True)
def test_stopped_clone_leaves_anothers_servers_alone(clones):
    """A stopped clone's ports are another's now: every command says so, and none reads or changes what is there."""
    first, second = clones
    assert first.workshop("up").returncode == 0
    first.record()
    shell = first.settings.exports()  # a terminal that is still open later
    assert first.workshop("down").returncode == 0
    assert second.workshop("up").returncode == 0
    assert second.port == first.port
    second.record()
    (holder,) = port_owners.find_owners(second.settings, second.port).values()
    for variables in (shell, {}):
        done = first.workshop("repro", **variables)
        assert done.returncode == 1, done.stdout
        assert f"is held by another clone: {second.settings.state}, " in done.stderr
        assert f"process {holder.process.pid}" in done.stderr
        assert "Traceback" not in done.stderr
    rows = first.status()
    assert not any(row["healthy"] for row in rows.values())
    assert str(second.settings.state) in rows["mlflow"]["reason"]
    kept = first.settings.ports_file.read_bytes()
    assert f":{second.port}\n" not in first.workshop("config", "--export").stdout.replace("'", "")
    first.settings.ports_file.write_bytes(kept)  # the export took ports of its own
    with pytest.raises(ServiceError, match="held by another clone"):
        first.record()
    values = first.workshop("check", MLFLOW_TRACKING_URI=second.settings.tracking_uri)
    assert f"tracking server: {second.settings.tracking_uri}, as MLFLOW_TRACKING_URI says" in values.stderr
    restarted = first.workshop("up")
    assert restarted.returncode == 0, restarted.stderr
    assert f"port {second.port} is busy: MLflow tracking takes {first.port}" in restarted.stderr
    assert str(second.settings.state) in restarted.stderr
    with environment_of(first.environment | shell):  # the old terminal finds where it is now
        assert own_or_given_uri() == first.settings.tracking_uri != shell["MLFLOW_TRACKING_URI"]
    for clone in clones:
        clone.record()
        clone.check_store()


@pytest.mark.parametrize("clones", ["stand-in"], indirect=True)
def test_clone_finds_its_ports_again(clones):
    """The second clone takes ports that follow from its folder; after a restart both have what they had."""
    first, second = clones
    assert first.workshop("up").returncode == 0
    shell, ports = first.settings.exports(), first.port
    done = second.workshop("up")
    assert done.returncode == 0, done.stderr
    busy = f"port {ports} is busy: MLflow tracking takes {second.port} (another clone: {first.settings.state}, "
    assert busy in done.stderr
    assert second.port in range(20000, 30000)
    new_port = second.port
    for clone in clones:
        assert clone.workshop("down").returncode == 0
    for clone in reversed(clones):
        assert clone.workshop("up").returncode == 0
    assert (first.port, second.port) == (ports, new_port)
    first.log(shell["MLFLOW_TRACKING_URI"])
    for clone in clones:
        clone.record()
        clone.check_store()


@pytest.mark.parametrize("clones", ["stand-in"], indirect=True)
def test_clones_that_start_simultaneously_take_different_ports(clones):
    """Both want the same ports: each has its own, and `down` of one leaves the other."""
    typed = [clone.type("up") for clone in clones]
    for process in typed:
        process.join()
    assert [process.exitcode for process in typed] == [0, 0]
    first, second = clones
    assert first.port != second.port
    for clone in clones:
        clone.record()
        clone.check_store()
    assert first.workshop("down").returncode == 0
    assert _mlflow(second).healthy


@pytest.mark.parametrize("clones", ["stand-in"], indirect=True)
def test_up_names_the_stranger_that_has_its_port(clones):
    """What answers `/health` on our port is not ours: `up` fails and says who it is; the supervisor gives up, too."""
    first, _ = clones
    assert first.workshop("up").returncode == 0
    assert first.workshop("down", "mlflow").returncode == 0
    with subprocess.Popen(
        [sys.executable, first.stand_in, str(first.port), first.settings.state / "intruder.db"]
    ) as intruder:
        wait_for(lambda: port_owners.find_owners(first.settings, first.port))
        done = first.workshop("up")
        assert done.returncode == 1
        assert f"The port {first.port} of this clone is held by" in done.stderr
        assert f"process {intruder.pid}" in done.stderr
        row = _mlflow(first)
        assert not row.healthy
        assert f"process {intruder.pid}" in row.reason
        wait_for(lambda: supervisor.processes(first.settings)["mlflow"]["statename"] == "FATAL", 180)
        assert first.workshop("down").returncode == 0
        restarted = first.workshop("up")
        assert restarted.returncode == 0, restarted.stderr
        assert f"process {intruder.pid}" in restarted.stderr
        first.record()
        first.check_store()
        intruder.kill()


def _mlflow(clone: Clone) -> supervisor.Status:
    """Return the state of a clone's tracking server."""
    return next(row for row in supervisor.status(clone.settings) if row.name == "mlflow")
