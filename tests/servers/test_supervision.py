"""Starting, watching and stopping the servers, for real."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import shlex
import signal
import socket
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator

import psutil
import pytest
from workplace import BIN, ROOT, Servers, free_port, new_workplace, processes_of

from workshop import ownership
from workshop.servers import supervision
from workshop.servers.services import SERVICES
from workshop.settings import STATE_VERSION

README = ROOT / "2_tracking" / "README.md"
NAMES = {"ftp", "mlflow", "dask-scheduler", "dask-workers", "dashboard"}


def status(place: Servers) -> dict[str, dict]:
    """What `workshop status --json` says, by name."""
    return {row["name"]: row for row in json.loads(place.run(BIN / "workshop", "status", "--json").stdout)["services"]}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A clone of its own, whose servers these tests start, kill and stop."""
    root, environment = new_workplace(tmp_path_factory.mktemp("place"))
    place = Servers(root, environment, "", 0.0)
    yield place
    place.run(BIN / "workshop", "down")
    assert not processes_of(root)


@pytest.fixture
def running(place):
    """The same with its servers up."""
    done = place.run(BIN / "workshop", "up")
    assert done.returncode == 0, done.stderr
    return place


def test_status_names_every_service(running):
    """A list of objects with name, address, pid and health; all well."""
    rows = status(running)
    assert set(rows) == NAMES
    assert all(set(row) == {"name", "address", "pid", "healthy", "by_hand", "reason"} for row in rows.values())
    assert all(row["healthy"] and psutil.pid_exists(row["pid"]) for row in rows.values())


def test_up_twice_changes_nothing(running):
    """The second `up` keeps every process."""
    before = status(running)
    done = running.run(BIN / "workshop", "up")
    assert done.returncode == 0
    assert status(running) == before
    assert running.settings.version_file.read_text() == f"{STATE_VERSION}\n"


def test_database_lets_readers_and_a_writer_work_at_once(running):
    """It was put into WAL mode when it was made, and stays so."""
    with contextlib.closing(sqlite3.connect(running.settings.database)) as database:
        assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_servers_listen_on_loopback_alone(running):
    """No socket of the servers is open to another machine."""
    pids = {process.pid for process in processes_of(running.root)}
    listening = [
        connection.laddr.ip
        for connection in psutil.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN and connection.pid in pids
    ]
    assert listening
    assert set(listening) == {"127.0.0.1"}


def test_password_is_nowhere_but_in_its_file(running):
    """Not in a command line, an environment, a log or an address; its file is the owner's alone."""
    settings = running.settings
    password = settings.credentials()[1].get_secret_value()
    assert settings.credentials_file.stat().st_mode & 0o777 == 0o600
    assert settings.state.stat().st_mode & 0o077 == 0
    for process in processes_of(running.root):
        with contextlib.suppress(psutil.Error):
            assert password not in " ".join(process.cmdline())
            assert password not in str(process.environ())
    for log in settings.logs.iterdir():
        assert password not in log.read_text(errors="replace")
    assert password not in running.run(BIN / "workshop", "config", "--export").stdout


def test_service_that_dies_is_started_again(running):
    """kill -9 on the FTP server: another one answers on the same port."""
    before = status(running)["ftp"]
    os.kill(before["pid"], signal.SIGKILL)
    deadline = time.monotonic() + 30
    after = before
    while time.monotonic() < deadline and (after["pid"] in (before["pid"], None) or not after["healthy"]):
        time.sleep(0.5)
        after = status(running)["ftp"]
    assert after["healthy"]
    assert after["pid"] != before["pid"]
    assert after["address"] == before["address"]


def served(place: Servers) -> list[psutil.Process]:
    """The processes that `up` started, but for the supervisor itself."""
    found = supervision._marked_processes(place.settings)
    return [process for process in found if "supervisord" not in " ".join(process.cmdline())]


@pytest.mark.parametrize("rounds", [2, pytest.param(60, marks=[pytest.mark.soak, pytest.mark.timeout(3600)])])
def test_whatever_is_killed_is_back_within_thirty_seconds(running, rounds):
    """Any process of the tree, also two at once: all answer again, one listener a port, and `down` finds them all."""
    dice = random.Random(rounds)
    settings = running.settings
    ports = {getattr(settings, name) for service in SERVICES for name in service.ports}
    for _ in range(rounds):
        victims = dice.sample(served(running), dice.choice([1, 2]))
        names = [" ".join(victim.cmdline())[-80:] for victim in victims]
        for victim in victims:
            victim.kill()
        _, alive = psutil.wait_procs(victims, timeout=1)
        assert all(victim.status() == psutil.STATUS_ZOMBIE for victim in alive)
        began = time.monotonic()
        while not all(row["healthy"] and row["pid"] for row in status(running).values()):
            assert time.monotonic() - began < 30, f"not back after the death of {names}: {status(running)}"
            time.sleep(0.3)
        listeners = [
            c.laddr.port for c in psutil.net_connections("tcp") if c.status == "LISTEN" and c.laddr.port in ports
        ]
        assert sorted(listeners) == sorted(ports)
        supervised = {row["pid"] for row in status(running).values()}
        for process in served(running):
            line = [process.pid, *(parent.pid for parent in process.parents())]
            assert supervised & set(line), f"an orphan: {process.cmdline()}"


def test_up_after_a_crash_replaces_what_was_left(running):
    """The supervisor killed: its orphans hold ports and database; `up` ends them, and one set of servers runs."""
    before = status(running)
    supervisor = int((running.settings.state / "supervisord.pid").read_text())
    os.kill(supervisor, signal.SIGKILL)
    psutil.wait_procs([psutil.Process(supervisor)] if psutil.pid_exists(supervisor) else [], timeout=5)
    done = running.run(BIN / "workshop", "up")
    assert done.returncode == 0, done.stderr
    assert "left behind" in done.stderr
    after = status(running)
    assert {name: row["address"] for name, row in after.items()} == {n: r["address"] for n, r in before.items()}
    assert not any(psutil.pid_exists(row["pid"]) for row in before.values())
    holders = [
        process.pid
        for process in psutil.process_iter()
        if str(running.settings.database) in " ".join(_cmdline(process)) and "mlflow" in " ".join(_cmdline(process))
    ]
    assert len(holders) == 1


def _cmdline(process):
    with contextlib.suppress(psutil.Error):
        return process.cmdline()
    return []


def test_down_leaves_nothing_and_up_moves_from_a_busy_port(running):
    """After `down` no process, no socket file; a port that is taken by then is left alone, and `up` says so."""
    wanted = running.settings.dashboard_port
    done = running.run(BIN / "workshop", "down")
    assert done.returncode == 0, done.stderr
    assert not processes_of(running.root)
    assert not (running.root / "server" / "state" / "supervisor.sock").exists()
    with socket.socket() as somebody:
        somebody.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        somebody.bind(("127.0.0.1", wanted))
        somebody.listen()
        done = running.run(BIN / "workshop", "up")
        assert done.returncode == 0, done.stderr
        assert f"port {wanted} is busy" in done.stderr
        moved = status(running)["dashboard"]
        assert moved["healthy"]
        assert not moved["address"].endswith(f":{wanted}")
        assert moved["address"] in running.run(BIN / "workshop", "config", "--export").stdout


@contextlib.contextmanager
def by_hand(place: Servers, *command: object) -> Iterator[psutil.Process]:
    """Run a server as a person does in a terminal; end it, and all it started, with the block."""
    environment = place.environment | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    log = place.root / "by_hand.log"
    with log.open("a") as file:
        server = psutil.Popen(
            [str(word) for word in command], cwd=place.root, env=environment, stdout=file, stderr=file
        )
    try:
        yield server
    finally:
        family = [server, *server.children(recursive=True)]
        server.terminate()
        server.wait(20)
        _, alive = psutil.wait_procs(family, timeout=20)
        for process in alive:
            process.kill()


def mlflow_command(place: Servers, port: int) -> list[object]:
    """The line of chapter 2's README, with the place's own addresses."""
    [line] = re.findall(r"^ *MLFLOW_SERVER\S+ (mlflow server .*)$", README.read_text(), re.MULTILINE)
    line = line.replace("${MLFLOW_TRACKING_URI##*:}", str(port))
    line = line.replace("$WORKSHOP_FTP_URI", place.settings.artifacts_uri)
    return [BIN / "mlflow", *shlex.split(line)[1:]]


def wait_until(happened: Callable[[], object], seconds: float = 60) -> None:
    """Wait until something is true."""
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.3)


def test_servers_run_behind_a_proxy_and_with_few_open_files(place):
    """`http_proxy` without `no_proxy`, and a hard limit of 256 open files: all servers answer."""
    place.run(BIN / "workshop", "down")
    environment = place.environment | {"http_proxy": "http://127.0.0.1:9", "no_proxy": "", "NO_PROXY": ""}
    done = place.run("bash", "-c", f"ulimit -n 256 && exec {BIN}/workshop up", env=environment)
    assert done.returncode == 0, done.stderr
    shown = place.run(BIN / "workshop", "status", "--json", env=environment)
    assert all(row["healthy"] for row in json.loads(shown.stdout)["services"])
    assert place.run(BIN / "workshop", "history", env=environment).returncode == 0
    assert place.run(BIN / "workshop", "down").returncode == 0


def test_up_refuses_a_second_server_on_the_database(place):
    """A tracking server started by hand on this database, and another port: `up` names it, and starts none beside."""
    place.run(BIN / "workshop", "up")
    place.run(BIN / "workshop", "down")
    with by_hand(place, *mlflow_command(place, free_port())) as server:
        settings = place.settings
        wait_until(lambda: list(ownership.users_of(settings.database)))
        family = [server, *server.children(recursive=True)]
        done = place.run(BIN / "workshop", "up")
    assert done.returncode == 1
    assert "has the tracking database open" in done.stderr
    assert any(f"process {process.pid}" in done.stderr for process in family)
    assert "Traceback" not in done.stderr


def test_services_that_are_named_are_stopped_alone(running):
    """`down ftp mlflow` stops these two and says so; the others go on, and `up` brings back what is missing."""
    before = status(running)
    done = running.run(BIN / "workshop", "down", "ftp", "mlflow")
    assert done.returncode == 0, done.stderr
    assert f"FTP artifact store: stopped; it was at {before['ftp']['address']}" in done.stderr
    assert "MLflow tracking: stopped" in done.stderr
    assert "Dask" not in done.stderr
    now = status(running)
    assert not any(now[name]["healthy"] or psutil.pid_exists(before[name]["pid"]) for name in ("ftp", "mlflow"))
    for name in NAMES - {"ftp", "mlflow"}:
        assert now[name] == before[name]
    again = running.run(BIN / "workshop", "down", "mlflow")
    assert again.returncode == 0
    assert "MLflow tracking: does not run" in again.stderr
    assert running.run(BIN / "workshop", "up").returncode == 0
    after = status(running)
    assert all(row["healthy"] for row in after.values())
    assert {name: row["address"] for name, row in after.items()} == {n: r["address"] for n, r in before.items()}


def test_service_that_is_unknown_is_told_with_those_that_are(running):
    """A misspelt name stops nothing, not even those that were right."""
    before = status(running)
    done = running.run(BIN / "workshop", "down", "mlfow", "ftp")
    assert done.returncode == 1
    for words in ("mlfow", ", ".join(service.name for service in SERVICES), "workshop status"):
        assert words in done.stderr
    assert status(running) == before


def test_servers_started_by_hand_are_left_alone(running):
    """FTP and MLflow as chapter 2 starts them: `up` and `down` leave both, and `up` takes over when they have ended."""
    running.run(BIN / "workshop", "down", "ftp", "mlflow")
    addresses = {name: row["address"] for name, row in status(running).items()}
    names = ("ftp", "mlflow")
    with (
        by_hand(running, BIN / "python", "server/ftpserver.py"),
        by_hand(running, *mlflow_command(running, running.settings.mlflow_port)),
    ):
        wait_until(lambda: all(status(running)[name]["healthy"] for name in names))
        theirs = {name: status(running)[name]["pid"] for name in names}

        def assert_left() -> None:
            rows = status(running)
            assert {name: rows[name]["pid"] for name in names} == theirs
            assert all(rows[name]["by_hand"] and rows[name]["healthy"] for name in names)

        done = running.run(BIN / "workshop", "up")
        assert done.returncode == 0, done.stderr
        assert done.stderr.count("started by hand and left as it is") == 2
        assert_left()
        assert not any(status(running)[name]["by_hand"] for name in NAMES - set(names))
        for words in (("down", "mlflow"), ("down",)):
            done = running.run(BIN / "workshop", *words)
            assert done.returncode == 0, done.stderr
            assert f"{addresses['mlflow']} goes on; who started it by hand ends it there" in done.stderr
            assert_left()
        assert not served(running)
        done = running.run(BIN / "workshop", "up")  # with no supervisor to ask, they are recognised all the same
        assert done.returncode == 0, done.stderr
        assert "is busy" not in done.stderr
        assert_left()
        wait_until(lambda: all(row["healthy"] for row in status(running).values()))
    assert running.run(BIN / "workshop", "up").returncode == 0
    rows = status(running)
    assert all(row["healthy"] and not row["by_hand"] for row in rows.values())
    assert {name: row["address"] for name, row in rows.items()} == addresses


def test_up_says_which_service_does_not_answer(place):
    """A service that cannot start: its name, the end of its log, exit code 1 and no traceback."""
    app = place.root / "4_pipeline" / "dashboard" / "app.py"
    content = app.read_text()
    app.write_text("raise SystemExit('the dashboard has a reason')\n")
    try:
        place.run(BIN / "workshop", "down")
        done = place.run(BIN / "workshop", "up")
        assert done.returncode == 1
        assert "Dashboard does not answer" in done.stderr
        assert "the dashboard has a reason" in done.stderr
        assert "Traceback" not in done.stderr
        assert "the dashboard has a reason" in status(place)["dashboard"]["reason"]
        assert "the dashboard has a reason" in place.run(BIN / "workshop", "status").stdout
    finally:
        app.write_text(content)
    done = place.run(BIN / "workshop", "up")  # mended, it is given another chance
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7", "workshop.example"])
def test_nothing_without_a_password_is_open_to_other_machines(tmp_path, host):
    """A host beyond loopback is refused by `up`, and by the dashboard started by hand; both say what to set."""
    root, environment = new_workplace(tmp_path / "clone")
    place = Servers(root, environment | {"WORKSHOP_HOST": host}, "", 0.0)
    for command in ((BIN / "workshop", "up"), (BIN / "python", root / "4_pipeline" / "dashboard" / "app.py")):
        done = place.run(*command)
        assert done.returncode == 1, done.stdout
        for words in ("without a password", f"WORKSHOP_HOST={host}", "unset WORKSHOP_HOST", "ssh -L"):
            assert words in done.stderr
        assert "Traceback" not in done.stderr
    assert not processes_of(root)


def test_two_ups_at_once_make_one_set_of_servers(place):
    """Two shells type `up` at the same moment: both succeed, and every service runs once."""
    place.run(BIN / "workshop", "down")
    shells = [subprocess.Popen([BIN / "workshop", "up"], cwd=place.root, env=place.environment) for _ in range(2)]
    assert [shell.wait(timeout=200) for shell in shells] == [0, 0]
    supervisors = [p for p in processes_of(place.root) if "supervisor.supervisord" in " ".join(_cmdline(p))]
    assert len(supervisors) == 1


def test_up_and_down_at_once_take_turns(running):
    """One waits for the other: all runs, or nothing, and nothing in between."""
    commands = [[BIN / "workshop", word] for word in ("up", "down")]
    shells = [subprocess.Popen(command, cwd=running.root, env=running.environment) for command in commands]
    assert [shell.wait(timeout=200) for shell in shells] == [0, 0]
    rows = status(running).values()
    assert all(row["healthy"] and row["pid"] for row in rows) or not processes_of(running.root)


def test_down_after_the_supervisor_was_killed_ends_all(running):
    """Nobody is left to stop the servers in order: `down` finds and ends each of them."""
    supervisor = psutil.Process(int((running.settings.state / "supervisord.pid").read_text()))
    supervisor.kill()
    supervisor.wait(5)
    assert served(running)
    done = running.run(BIN / "workshop", "down")
    assert done.returncode == 0, done.stderr
    assert not processes_of(running.root)


def test_state_of_a_machine_that_was_restarted_is_recognised(running):
    """All gone at once, the supervisor's number another process's: nobody else is touched, and all starts."""
    settings = running.settings
    for process in supervision._marked_processes(settings):
        process.kill()
    assert settings.ports_file.exists()
    with subprocess.Popen(["sleep", "600"]) as innocent:
        (settings.state / "supervisord.pid").write_text(f"{innocent.pid}\n")
        assert not any(row["healthy"] or row["pid"] for row in status(running).values())
        done = running.run(BIN / "workshop", "up")
        assert done.returncode == 0, done.stderr
        assert "left behind" not in done.stderr
        assert running.settings.exports() == settings.exports()  # shells that were told of them are still right
        for process in supervision._marked_processes(settings):
            process.kill()
        (settings.state / "supervisord.pid").write_text(f"{innocent.pid}\n")
        done = running.run(BIN / "workshop", "down")
        assert done.returncode == 0, done.stderr
        assert not settings.ports_file.exists()
        assert innocent.poll() is None
        innocent.kill()


def test_two_clones_do_not_meet(place, tmp_path):
    """Both want the same ports and start at the same moment: each has its own, and `down` of one leaves the other."""
    place.run(BIN / "workshop", "down")
    root, environment = new_workplace(tmp_path / "second")
    wanted = {name: value for name, value in place.environment.items() if name.endswith(("_PORT", "_FIRST"))}
    second = Servers(root, environment | wanted, "", 0.0)
    try:
        shells = [
            subprocess.Popen([BIN / "workshop", "up"], cwd=clone.root, env=clone.environment)
            for clone in (place, second)
        ]
        assert [shell.wait(timeout=300) for shell in shells] == [0, 0]
        ports = [{getattr(c.settings, name) for s in SERVICES for name in s.ports} for c in (place, second)]
        assert not ports[0] & ports[1]
        for clone, own in zip((place, second), ports, strict=True):
            ours = {process.pid for process in supervision._marked_processes(clone.settings)}
            listening = {c.laddr.port for c in psutil.net_connections("tcp") if c.status == "LISTEN" and c.pid in ours}
            assert own <= listening
        assert place.run(BIN / "workshop", "down").returncode == 0
        assert all(row["healthy"] for row in status(second).values())
    finally:
        assert second.run(BIN / "workshop", "down").returncode == 0
    assert not processes_of(root)


def test_database_is_made_whole_or_not_at_all(place, tmp_path):
    """`up` killed while the tables are made: no half-made database stays, and the next `up` works."""
    environment = place.environment | {"WORKSHOP_STATE": str(tmp_path / "state")}
    with subprocess.Popen([BIN / "workshop", "up"], cwd=place.root, env=environment, start_new_session=True) as first:
        deadline = time.monotonic() + 60
        while not (tmp_path / "state" / "mlflow.new").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        os.killpg(first.pid, signal.SIGKILL)
    assert not (tmp_path / "state" / "mlflow.db").exists()
    try:
        done = place.run(BIN / "workshop", "up", env=environment)
        assert done.returncode == 0, done.stderr
        assert (tmp_path / "state" / "mlflow.db").exists()
    finally:
        place.run(BIN / "workshop", "down", env=environment)
