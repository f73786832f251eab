"""The README typed from top to bottom, in containers.

It takes minutes, and needs root, podman and PyPI: `python -m pytest -m soak` starts it; no other command does.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import requests
from mlflow import MlflowClient
from podman_machine import Machine, machine
from workplace import answer_of, copy_tree, wait_for

pytestmark = [pytest.mark.soak, pytest.mark.privileged]
README = (Path(__file__).parents[1] / "README.md").read_text()
BLOCKS = re.findall(r"^```bash\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)
MLFLOW, ADMINER, LOGS = (f"http://127.0.0.1:{port}" for port in (5500, 5501, 5502))
SERVICES = ["postgres", "mlflow", "adminer", "collector", "logs"]
LOGIN = {"driver": "pgsql", "server": "postgres", "username": "mlflow", "db": "mlflow"}
VOLUMES = 'cd "$(podman volume inspect --format {{.Mountpoint}} team_logs)"'


@dataclass
class Team:
    """The stack, and what the README's commands printed."""

    machine: Machine
    printed: list[str] = field(default_factory=list)

    def types(self, text: str, **options) -> str:
        """Type commands in the folder `server/team`."""
        return self.machine.types(f"cd server/team; {text}", **options)

    @property
    def password(self) -> str:
        """The database's password."""
        return (self.machine.work / "server" / "team" / "secrets" / "postgres_password").read_text()

    def wait(self) -> None:
        """Wait until the three pages answer."""
        for url in (f"{MLFLOW}/health", ADMINER, LOGS):
            wait_for(lambda url=url: answer_of(url), 300)

    def log_experiment(self) -> str:
        """Type the README's command; return the run's id."""
        return re.search(r"runs/(\w{32})", self.types(BLOCKS[1]))[1]

    def query(self, sql: str) -> list[dict]:
        """Ask the database of the logs, as a reader of the page."""
        answer = requests.get(f"{LOGS}/logs.json", params={"sql": sql, "_shape": "array"}, timeout=60)
        assert answer.ok, answer.text
        return answer.json()

    def pid(self, service: str) -> int:
        """Return the first process of a service, 0 while there is none."""
        return int(self.machine.types(f"podman inspect --format {{{{.State.Pid}}}} team_{service}_1"))


@pytest.fixture(scope="module")
def team(tmp_path_factory) -> Iterator[Team]:
    """Type all commands of the README in their order, with an experiment between the backup and its way back."""
    folder = tmp_path_factory.mktemp("team")
    with machine(folder / "podman", copy_tree(folder / "work")) as here, here.network():
        team = Team(here)
        up, _, scripts, again, backup, restore = BLOCKS
        try:
            team.printed.append(here.types(up))
            team.wait()
            kept = team.log_experiment()
            team.printed.append(team.types(scripts))
            team.types(again)
            team.wait()
            team.types(backup)
            lost = team.log_experiment()
            team.types(restore)
            team.wait()
            team.printed += [kept, lost]
            yield team
        finally:
            print(here.types("podman ps --all; podman logs --tail 50 team_mlflow_1 2>&1 || true"))


def test_runs_survive_down_and_up_and_come_back_from_the_backup(team):
    """The first run has parameter, curve and file; the one after the backup is gone; a new one can be logged."""
    client = MlflowClient(MLFLOW)
    kept, lost = team.printed[2:]
    experiment = client.get_experiment_by_name("hello_team").experiment_id
    assert kept in (ids := [run.info.run_id for run in client.search_runs([experiment])])
    assert lost not in ids
    for run in (kept, team.log_experiment()):
        assert client.get_run(run).info.status == "FINISHED"
        assert client.get_run(run).data.params == {"learning_rate": "0.1"}
        assert [metric.step for metric in client.get_metric_history(run, "loss")] == list(range(20))
        url = f"{MLFLOW}/get-artifact"
        assert requests.get(url, params={"path": "summary.json", "run_uuid": run}, timeout=60).json() == {"steps": 20}


def test_metric_is_shown_by_adminer(team):
    """The form takes what the README says, and no other password; the table of metrics has the run's 20 values."""
    session = requests.Session()
    form = {f"auth[{name}]": value for name, value in LOGIN.items()}
    refused = session.post(ADMINER, data=form | {"auth[password]": "wrong"}, timeout=60)
    assert (refused.status_code, "Logout" in refused.text) == (403, False)
    assert "Logout" in session.post(ADMINER, data=form | {"auth[password]": team.password}, timeout=60).text
    table = {"pgsql": "postgres", "username": "mlflow", "db": "mlflow", "ns": "public", "select": "metrics"}
    assert session.get(ADMINER, params=table, timeout=60).text.count(team.printed[2]) >= 20


def test_logs_are_found(team):
    """Search, facets, a run's story, and lines of every service."""
    page = requests.get(f"{LOGS}/logs/log", params={"_search": "startup complete"}, timeout=60).text
    assert "Application startup complete." in page
    assert "facet-results" in page
    story = requests.get(f"{LOGS}/logs/run.json", params={"run_id": team.printed[2], "_shape": "array"}, timeout=60)
    assert any("PUT" in row["message"] and "summary.json" in row["message"] for row in story.json())
    services = {row["service"] for row in team.query("SELECT DISTINCT service FROM log")}
    assert {"postgres", "mlflow", "adminer", "collector"} <= services


def test_stopped_collector_loses_and_doubles_nothing(team):
    """Lines that are written while it is down land later, and each line of MLflow's files is there once."""
    team.types("podman-compose stop collector")
    run = team.log_experiment()
    team.types("podman-compose start collector")
    wait_for(lambda: team.query(f"SELECT * FROM log WHERE run_id = '{run}' AND message LIKE '%PUT%'"))
    written = team.types(f"{VOLUMES}; cat mlflow.jsonl*").splitlines()
    count = "SELECT count(*) AS number FROM log WHERE service = 'mlflow'"
    wait_for(lambda: team.query(count)[0]["number"] >= len(written))
    assert team.query(count) == [{"number": len(written)}]


@pytest.mark.parametrize("service", SERVICES)
def test_killed_service_is_back(team, service):
    """Its first process is killed: another takes its place, answers its health check, and the runs are there."""
    before = team.pid(service)
    assert before
    team.types(f"kill -KILL {before}")
    wait_for(lambda: team.pid(service) not in (0, before), 60)
    team.wait()
    wait_for(
        lambda: "passed" in team.types(f"podman healthcheck run team_{service}_1 >/dev/null && echo passed || true")
    )
    assert MlflowClient(MLFLOW).get_run(team.printed[2]).info.status == "FINISHED"


def test_passwords_are_nowhere(team):
    """Not in a log, an image, a container's layer or description, a command line; and no service runs as root."""
    time.sleep(2)  # a round of the collector
    texts = [*team.printed[:2], json.dumps(team.query("SELECT * FROM log"))]
    for service in SERVICES:
        texts.append(team.types(f"podman logs team_{service}_1 2>&1; podman inspect team_{service}_1"))
        users = team.types(f"podman top team_{service}_1 user").split()[1:]
        assert users
        assert "root" not in users
    texts.append(team.types(f"{VOLUMES}; cat *"))
    texts.append(team.types("cat /proc/[0-9]*/cmdline | tr '\\0' ' '"))
    texts.append(team.types("podman image inspect $(podman images --quiet); podman history --no-trunc team/team"))
    assert all(len(text) > 50 for text in texts)
    assert [text[:80] for text in texts if team.password in text] == []
    images = (team.machine.work.parent / "podman" / "images").as_posix()
    found = team.types(f"grep -rlF --exclude-dir=volumes {team.password} {images} || true").split()
    assert found == []


def test_new_password_is_valid_after_a_restart(team):
    """The README's way out of a lost password; the old one is refused."""
    old = team.password
    (commands,) = re.findall(r"`(rm -r secrets[^`]*)`, then `([^`]*)`", README)
    team.types("\n".join(commands))
    team.wait()
    assert team.password != old
    team.log_experiment()
    for password, code in ((team.password, 0), (old, 2)):
        team.types(
            f"podman exec -e PGPASSWORD={password} team_postgres_1 psql -h postgres -U mlflow -c 'SELECT 1'", code=code
        )
