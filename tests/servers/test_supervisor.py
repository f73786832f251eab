"""`workshop up`, `status` and `down` with real servers that are killed, stopped, or compete for ports."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import shlex
import shutil
import signal
import socket
import sqlite3
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict

import psutil
import pytest
from workplace import BIN, ROOT, Servers, frozen, new_workplace, processes_of, run_program, wait_for

from workshop import port_owners
from workshop.exports import exports_of
from workshop.servers import supervisor
from workshop.servers.services import SERVICES

README = ROOT / "server" / "README.md"
SENDING = """
import os
from distributed import Client

with Client(os.environ["DASK_SCHEDULER_ADDRESS"]) as client:
    print("connected", flush=True)
    input()
    data = client.scatter(bytes(20_000_000), broadcast=True)
    print(client.submit(len, data).result())
"""
NAMES = {service.name for service in SERVICES}


def status(place: Servers) -> dict[str, dict]:
    """Return the state of each service, by name."""
    return {row.name: asdict(row) for row in supervisor.status(place.settings)}


def all_well(place: Servers) -> bool:
    """Return whether every service is running and answers."""
    return all(row["healthy"] and row["pid"] for row in status(place).values())


def addresses(rows: dict[str, dict]) -> dict[str, str]:
    """Return the address of each service."""
    return {name: row["address"] for name, row in rows.items()}


def workshop(place: Servers, *words: str) -> subprocess.CompletedProcess:
    """Run `workshop ...` and assert that it succeeds."""
    return place.run(BIN / "workshop", *words)


@pytest.fixture(scope="module")
def place(tmp_path_factory, new_database) -> Iterator[Servers]:
    """A separate clone, whose servers these tests start, kill and stop."""
    root, environment = new_workplace(tmp_path_factory.mktemp("place"))
    place = Servers(root, environment)
    place.settings.state.mkdir(parents=True)
    shutil.copy(new_database, place.settings.database)
    yield place
    place.run(BIN / "workshop", "down")
    assert not processes_of(root)


@pytest.fixture
def running(place) -> Servers:
    """The same clone with running servers."""
    if not all_well(place):
        workshop(place, "up")
    return place


def served(place: Servers) -> list[psutil.Process]:
    """Return the processes that `up` started, except supervisor itself."""
    marked = port_owners.marked_processes(place.settings.state)
    return [process for process in marked if "supervisord" not in " ".join(process.cmdline())]


def test_status_names_every_service_and_a_second_up_changes_nothing(running):
    """`status --json` lists name, address, pid and health of each service; a second `up` changes none of them."""
    rows = json.loads(workshop(running, "status", "--json").stdout)["services"]
    assert {row["name"] for row in rows} == NAMES
    assert all(set(row) == {"name", "address", "pid", "state", "healthy", "reason"} for row in rows)
    assert {row["state"] for row in rows} == {"running"}
    assert all(row["healthy"] and psutil.pid_exists(row["pid"]) for row in rows)
    workshop(running, "up")
    assert list(status(running).values()) == rows


def test_servers_listen_only_on_loopback(running):
    """No socket is open to other machines, MLflow has no job workers, and its database is in WAL mode."""
    pids = {process.pid for process in processes_of(running.root)}
    listening = {c.laddr.ip for c in psutil.net_connections("inet") if c.status == "LISTEN" and c.pid in pids}
    assert listening == {"127.0.0.1"}
    with contextlib.closing(sqlite3.connect(running.settings.database)) as database:
        assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert not psutil.Process(status(running)["mlflow"]["pid"]).children()


@pytest.mark.walk
def test_worker_that_loses_the_scheduler_is_replaced(running):
    """The worker's nanny closes with it and does not replace it, so supervisor restarts all workers."""
    process = psutil.Process(status(running)["dask-workers"]["pid"])
    with running.dask_client() as client:
        workers = client.scheduler_info()["workers"]
        assert len(workers) == running.settings.dask_workers == 2

        async def lose(dask_worker):
            dask_worker.loop.call_later(0.1, dask_worker.batched_stream.comm.abort)

        client.run(lose, workers=[min(workers)])
        wait_for(lambda: all_well(running) and not workers.keys() & client.scheduler_info()["workers"].keys())
    assert not process.is_running()


@pytest.mark.soak
@pytest.mark.parametrize("blocked", ["scheduler", "worker"])
def test_data_sent_to_a_blocked_process_arrive(running, blocked):
    """A scheduler or worker that is blocked for 45 s receives a search's data afterwards."""
    with running.dask_client() as client:
        worker = min(client.scheduler_info()["workers"])
    port = running.settings.dask_port if blocked == "scheduler" else int(worker.rpartition(":")[2])
    words, environment = [BIN / "python", "-c", SENDING], running.environment | exports_of(running.settings)
    with subprocess.Popen(words, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as sender:
        assert sender.stdout.readline() == "connected\n"
        with frozen(port):
            sender.stdin.write("\n")
            sender.stdin.flush()
            time.sleep(45)
        assert sender.stdout.read() == "20000000\n"


def test_password_is_only_in_its_file(running):
    """No command line, environment, log or address contains the password; only the owner can read its file."""
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
    assert password not in str(exports_of(settings))


@pytest.mark.parametrize(
    "rounds",
    [pytest.param(1, marks=pytest.mark.walk), pytest.param(60, marks=[pytest.mark.soak, pytest.mark.timeout(3600)])],
)
def test_killed_processes_are_restarted(running, rounds):
    """After the FTP server and another process are killed, all services answer: one listener per port, no orphans."""
    dice = random.Random(rounds)
    settings, before = running.settings, addresses(status(running))
    ports = {getattr(settings, name) for service in SERVICES for name in service.ports}
    for _ in range(rounds):
        victims = [psutil.Process(status(running)["ftp"]["pid"]), dice.choice(served(running))]
        for victim in victims:
            victim.kill()
        psutil.wait_procs(victims, timeout=60)
        wait_for(lambda: all_well(running))
        rows = status(running)
        assert addresses(rows) == before
        listeners = [
            c.laddr.port for c in psutil.net_connections("tcp") if c.status == "LISTEN" and c.laddr.port in ports
        ]
        assert sorted(listeners) == sorted(ports)
        supervised = {row["pid"] for row in rows.values()}
        for process in served(running):
            line = [process.pid, *(parent.pid for parent in process.parents())]
            assert supervised & set(line), f"an orphan: {process.cmdline()}"


@contextlib.contextmanager
def by_hand(place: Servers, *command: object) -> Iterator[psutil.Process]:
    """Run a server as in a terminal; stop it and its child processes at the end of the block."""
    environment = place.environment | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (place.root / "by_hand.log").open("a") as log:
        server = psutil.Popen([str(word) for word in command], cwd=place.root, env=environment, stdout=log, stderr=log)
    try:
        yield server
    finally:
        family = [server, *server.children(recursive=True)]
        server.terminate()
        server.wait(60)
        _, alive = psutil.wait_procs(family, timeout=60)
        for process in alive:
            process.kill()


def mlflow_command(place: Servers) -> list[object]:
    """Return the command of the servers' README, with the addresses of a clone."""
    [line] = re.findall(r"^ *MLFLOW_SERVER\S+ (mlflow server .*)$", README.read_text(), re.MULTILINE)
    line = line.replace("${MLFLOW_TRACKING_URI##*:}", str(place.settings.mlflow_port))
    line = line.replace("$WORKSHOP_FTP_URI", place.settings.artifacts_uri)
    return [BIN / "mlflow", *shlex.split(line)[1:]]


@pytest.mark.walk
def test_servers_started_by_hand_are_left_alone(running):
    """`up` and `down` leave an FTP server and MLflow started by hand running; once they end, `up` starts its own."""
    before, names = status(running), ("ftp", "mlflow")
    done = workshop(running, "down", *names)
    assert f"FTP artifact store: stopped (it was at {before['ftp']['address']})" in done.stderr
    stopped = status(running)
    assert not any(stopped[name]["healthy"] or psutil.pid_exists(before[name]["pid"]) for name in names)
    assert all(stopped[name] == before[name] for name in NAMES - set(names))
    with by_hand(running, BIN / "python", "server/ftpserver.py"), by_hand(running, *mlflow_command(running)):
        wait_for(lambda: all(status(running)[name]["healthy"] for name in names))
        rows = status(running)
        assert workshop(running, "up").stderr.count("(started by hand)") == 2
        done = workshop(running, "down", "mlflow")
        assert f"{before['mlflow']['address']} was started by hand and is still running" in done.stderr
        assert status(running) == rows
        assert {name for name, row in rows.items() if row["state"] == "started by hand"} == set(names)
    assert "waiting for FTP artifact store" in workshop(running, "up").stderr
    rows = status(running)
    assert {row["state"] for row in rows.values()} == {"running"}
    assert addresses(rows) == addresses(before)


def test_up_says_which_service_does_not_answer(running):
    """For a service that cannot start, `up` prints its name and the end of its log, and exits 1 without traceback."""
    app = running.root / "4_pipeline" / "dashboard" / "app.py"
    content = app.read_text()
    app.write_text("raise SystemExit('the dashboard has a reason')\n")
    try:
        workshop(running, "down", "dashboard")
        done = running.run(BIN / "workshop", "up", exit_code=1)
        assert "Dashboard does not respond" in done.stderr
        assert "the dashboard has a reason" in done.stderr
        assert "Traceback" not in done.stderr
        assert "the dashboard has a reason" in status(running)["dashboard"]["reason"]
    finally:
        app.write_text(content)
    workshop(running, "up")  # starts the failed service again after the fix


def kill_supervisor(place: Servers, instead: int) -> None:
    """Kill supervisor and write another process's id into its pid file, as after a reboot."""
    file = place.settings.pid_file
    process = psutil.Process(int(file.read_text()))
    process.kill()
    process.wait(60)
    file.write_text(f"{instead}\n")


@pytest.mark.walk
def test_killed_supervisor_is_replaced_by_one_other(running):
    """Two simultaneous `up` replace the servers of a killed supervisor by one new set, on the same or on free ports."""
    workshop(running, "down", "dashboard")
    before, port = status(running), running.settings.dashboard_port
    environment = running.environment | {"http_proxy": "http://127.0.0.1:9", "no_proxy": "", "NO_PROXY": ""}
    command = ["bash", "-c", f"ulimit -n 256 && exec {BIN}/workshop up"]
    with socket.create_server(("127.0.0.1", port)), subprocess.Popen(["sleep", "600"]) as innocent:
        kill_supervisor(running, innocent.pid)
        shells = [
            subprocess.Popen(command, cwd=running.root, env=environment, stderr=subprocess.PIPE, text=True)
            for _ in range(2)
        ]
        stderr = "".join(shell.communicate(timeout=400)[1] for shell in shells)
        assert [shell.returncode for shell in shells] == [0, 0], stderr
        assert stderr.count("left over") == stderr.count(f"port {port} is used by") == 1
        supervisors = [p for p in processes_of(running.root) if "supervisor.supervisord" in " ".join(p.cmdline())]
        assert len(supervisors) == 1
        rows = status(running)
        new_address = rows["dashboard"]["address"]
        assert not new_address.endswith(f":{port}")
        assert addresses(rows) == addresses(before) | {"dashboard": new_address}
        assert not any(row["pid"] and psutil.pid_exists(row["pid"]) for row in before.values())
        assert new_address in running.run(BIN / "workshop", "config", "--export").stdout
        gate = [BIN / "mlflow-gate", "history"]
        running.run(*gate, env=environment | exports_of(running.settings), cwd=running.pipeline)
        assert innocent.poll() is None
        innocent.kill()


@pytest.mark.walk
def test_down_ends_processes_left_by_a_killed_supervisor(running):
    """`down` ends all processes of the clone, and no other process."""
    with subprocess.Popen(["sleep", "600"]) as innocent:
        kill_supervisor(running, innocent.pid)
        assert served(running)
        workshop(running, "down")
        assert not processes_of(running.root)
        assert not running.settings.is_up
        assert innocent.poll() is None
        innocent.kill()


def test_nothing_without_a_password_is_open_to_other_machines(tmp_path):
    """`up`, and the dashboard started by hand, reject a host beyond loopback and say what to do."""
    environment = os.environ | {"WORKSHOP_HOST": "0.0.0.0", "WORKSHOP_STATE": str(tmp_path / "state")}
    by_hand = (BIN / "python", "-m", "dashboard", "--host", "0.0.0.0")
    for command, value in (((BIN / "workshop", "up"), "WORKSHOP_HOST=0.0.0.0"), (by_hand, "--host 0.0.0.0")):
        done = run_program(*command, env=environment, cwd=ROOT / "4_pipeline", exit_code=1)
        for words in ("without a password", value, "ssh -L"):
            assert words in done.stderr
        assert "Traceback" not in done.stderr
    assert not (tmp_path / "state").exists()


def take_when_chosen(place: Servers, listener: socket.socket) -> None:
    """Listen on the port chosen for the tracking server before that server does."""
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # the server that just ended had connections
    wait_for(lambda: place.settings.is_up)
    listener.bind(("127.0.0.1", place.settings.mlflow_port))
    listener.listen()


@pytest.mark.walk
def test_port_that_another_program_takes_first_is_replaced(place):
    """If a port is taken between its choice and the start, `up` chooses another, and a second `up` succeeds."""
    workshop(place, "down")
    port = place.settings.mlflow_port
    with socket.socket() as listener:
        thief = threading.Thread(target=take_when_chosen, args=(place, listener))
        thief.start()
        done = workshop(place, "up")
        thief.join()
        assert f": port {port} is used by" in done.stderr
        assert place.settings.mlflow_port != port
        assert all_well(place)
        workshop(place, "up")
    assert all_well(place)


@pytest.mark.walk
def test_database_is_created_atomically(tmp_path):
    """A server killed while it creates the tables leaves no partial database, and the next start creates one."""
    program = "from workshop.servers.tracking_server import *; import sys; ensure_database(Path(sys.argv[1]))"
    command = [BIN / "python", "-c", program, tmp_path / "mlflow.db"]
    with subprocess.Popen(command, start_new_session=True) as first:
        wait_for((tmp_path / "mlflow.made").exists)
        os.killpg(first.pid, signal.SIGKILL)
    assert not (tmp_path / "mlflow.db").exists()
    assert subprocess.run(command, check=False).returncode == 0
    with contextlib.closing(sqlite3.connect(tmp_path / "mlflow.db")) as database:
        assert database.execute("SELECT count(*) FROM alembic_version").fetchone() == (1,)
