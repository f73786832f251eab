"""Run the README's commands from top to bottom, in containers and from a colleague's machine.

This takes minutes, and needs root, podman and PyPI: `make containers` installs missing packages and runs it.
"""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import machines
import pytest
import requests
from mlflow import MlflowClient
from podman_machine import Machine, machine
from workplace import BIN, answer_of, copy_tree, running, wait_for

pytestmark = [pytest.mark.soak, pytest.mark.privileged]
README = (Path(__file__).parents[1] / "README.md").read_text()
BLOCKS = re.findall(r"^```bash\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)
MLFLOW, ADMINER, LOGS = (f"http://127.0.0.1:{port}" for port in (5000, 5501, 5502))
PAGES = ["/", "/adminer/", "/search/logs/log"]  # of the proxy
SERVICES = ["postgres", "mlflow", "adminer", "collector", "logs", "proxy"]
HOST = "team.example.org"
BUSY_SECONDS = 900  # for servers on a busy machine to answer
LOGIN = {"driver": "pgsql", "server": "postgres", "username": "mlflow", "db": "mlflow"}
VOLUMES = 'cd "$(podman volume inspect --format {{.Mountpoint}} team_logs)"'


def block(text: str) -> str:
    """Return the README's only block of commands that contains a text."""
    (match,) = [each for each in BLOCKS if text in each]
    return match


@dataclass
class Team:
    """The containers, the output of the commands, and the ids of runs before and after the backup."""

    machine: Machine
    printed: str = ""
    kept: str = ""
    lost: str = ""

    def types(self, text: str, **options) -> str:
        """Run commands in the folder `server/team`."""
        return self.machine.types(f"cd server/team; {text}", **options)

    @property
    def folder(self) -> Path:
        """The folder of the passwords."""
        return self.machine.work / "server" / "team" / "secrets"

    @property
    def password(self) -> str:
        """The database's password."""
        return (self.folder / "postgres_password").read_text()

    def wait(self) -> None:
        """Wait until the three pages answer."""
        for url in (f"{MLFLOW}/health", ADMINER, LOGS):
            wait_for(lambda url=url: answer_of(url), BUSY_SECONDS)

    def log_experiment(self) -> str:
        """Run the README's command; return the run's id."""
        return run_of(self.types(block("$MLFLOW_PORT\npython")))

    def query(self, sql: str) -> list[dict]:
        """Query the log database through its page."""
        answer = requests.get(f"{LOGS}/logs.json", params={"sql": sql, "_shape": "array"}, timeout=60)
        assert answer.ok, answer.text
        return answer.json()

    def pid(self, service: str) -> int:
        """Return the main process id of a service, 0 if it is down."""
        return int(self.machine.types(f"podman inspect --format {{{{.State.Pid}}}} team_{service}_1"))

    def listeners(self) -> set[str]:
        """Return the non-loopback addresses on which this machine's programs listen."""
        addresses = {line.split()[3] for line in self.types("ss --no-header -ltn").splitlines()}
        return {each for each in addresses if not each.startswith(("127.", "[::1]"))}


def run_of(printed: str) -> str:
    """Return the run's id from the experiment's output."""
    return re.search(r"runs/(\w{32})", printed)[1]


@pytest.fixture(scope="module")
def team(tmp_path_factory) -> Iterator[Team]:
    """Run the README's commands up to the restored backup, with an experiment between backup and restore."""
    folder = tmp_path_factory.mktemp("team")
    with machine(folder / "podman", copy_tree(folder / "work")) as here, machines.network(here.pid):
        team = Team(here)
        try:
            here.types(block("apt-get"))
            team.printed += here.types(block("secrets.sh"))
            team.wait()
            team.kept = team.log_experiment()
            team.printed += team.types(block("logging_plain.py"))
            before = team.listeners()
            assert not [each for each in before if not each.endswith(":53")]  # the containers' own names
            team.types("podman-compose down; podman-compose up -d")
            team.wait()
            team.types(block("backup.sh"))
            team.lost = team.log_experiment()
            team.types(block("restore.sh"))
            team.wait()
            yield team
        finally:
            print(here.types("podman ps --all; podman logs --tail 50 team_mlflow_1 2>&1 || true"))


def test_runs_survive_down_and_up_and_come_back_from_the_backup(team):
    """The first run has parameter, curve and file; the run after the backup is deleted; a new run can be logged."""
    client = MlflowClient(MLFLOW)
    experiment = client.get_experiment_by_name("hello_team").experiment_id
    assert team.kept in (ids := [run.info.run_id for run in client.search_runs([experiment])])
    assert team.lost not in ids
    for run in (team.kept, team.log_experiment()):
        assert client.get_run(run).info.status == "FINISHED"
        assert client.get_run(run).data.params == {"learning_rate": "0.1"}
        assert [metric.step for metric in client.get_metric_history(run, "loss")] == list(range(20))
        url = f"{MLFLOW}/get-artifact"
        assert requests.get(url, params={"path": "summary.json", "run_uuid": run}, timeout=60).json() == {"steps": 20}


def test_taken_port_is_left_alone(team):
    """If MLflow's default port is in use, `secrets.sh` chooses another, and keeps it when it runs again."""
    for _ in range(2):
        assert "http://127.0.0.1:5500\n" in team.types("mkdir -p again; cp secrets.sh again; again/secrets.sh")
    assert team.types("cat again/.env") == "MLFLOW_PORT=5500\n"


def test_metric_is_shown_by_adminer(team):
    """The form accepts the README's values, and no other password; the table of metrics has the run's 20 values."""
    session = requests.Session()
    form = {f"auth[{name}]": value for name, value in LOGIN.items()}
    refused = session.post(ADMINER, data=form | {"auth[password]": "wrong"}, timeout=60)
    assert (refused.status_code, "Logout" in refused.text) == (403, False)
    assert "Logout" in session.post(ADMINER, data=form | {"auth[password]": team.password}, timeout=60).text
    table = {"pgsql": "postgres", "username": "mlflow", "db": "mlflow", "ns": "public", "select": "metrics"}
    assert session.get(ADMINER, params=table, timeout=60).text.count(team.kept) >= 20


def test_logs_are_found(team):
    """Search, facets and a run's story work, and every service has lines."""
    page = requests.get(f"{LOGS}/logs/log", params={"_search": "startup complete"}, timeout=60).text
    assert "Application startup complete." in page
    assert "facet-results" in page
    story = requests.get(f"{LOGS}/logs/run.json", params={"run_id": team.kept, "_shape": "array"}, timeout=60)
    assert any("PUT" in row["message"] and "summary.json" in row["message"] for row in story.json())
    services = {row["service"] for row in team.query("SELECT DISTINCT service FROM log")}
    assert {"postgres", "mlflow", "adminer", "collector"} <= services


def test_stopped_collector_loses_and_duplicates_nothing(team):
    """Lines written while the collector is down are stored later, and each line of MLflow's files once."""
    team.types("podman-compose stop collector")
    run = team.log_experiment()
    team.types("podman-compose start collector")
    wait_for(lambda: team.query(f"SELECT * FROM log WHERE run_id = '{run}' AND message LIKE '%PUT%'"))
    written = team.types(f"{VOLUMES}; cat mlflow.jsonl*").splitlines()
    count = "SELECT count(*) AS number FROM log WHERE service = 'mlflow'"
    wait_for(lambda: team.query(count)[0]["number"] >= len(written))
    assert team.query(count) == [{"number": len(written)}]


@pytest.mark.parametrize("service", SERVICES)
def test_killed_service_is_restarted(team, service):
    """After its main process is killed, a service restarts, passes its health check, and the runs are kept."""
    before = team.pid(service)
    assert before
    team.types(f"kill -KILL {before}")
    wait_for(lambda: team.pid(service) not in (0, before), 60)
    team.wait()
    wait_for(
        lambda: "passed" in team.types(f"podman healthcheck run team_{service}_1 >/dev/null && echo passed || true")
    )
    assert MlflowClient(MLFLOW).get_run(team.kept).info.status == "FINISHED"


def test_passwords_are_not_leaked(team):
    """No log, image, container layer or description, or command line has a password; no service runs as root."""
    time.sleep(2)  # for a round of the collector
    texts = [team.printed, json.dumps(team.query("SELECT * FROM log"))]
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
    matches = team.types(f"grep -rlF --exclude-dir=volumes {team.password} {images} || true").split()
    assert matches == []


def test_new_password_is_valid_after_down_and_up(team):
    """After the README's steps for a lost password, the new one is valid and the old one rejected."""
    old = team.password
    (commands,) = re.findall(r"`(rm secrets[^`]*)`, then `([^`]*)`", README)
    team.types("\n".join(commands))
    team.wait()
    assert team.password != old
    team.log_experiment()
    for password, code in ((team.password, 0), (old, 2)):
        team.types(
            f"podman exec -e PGPASSWORD={password} team_postgres_1 psql -h postgres -U mlflow -c 'SELECT 1'", code=code
        )


# -- other machines; the proxy is open from here on --------------------------------------------------------------------
@pytest.fixture(scope="module")
def colleague(team, tmp_path_factory) -> Iterator[machines.Machine]:
    """A second machine with the experiment and Ada's files, connected to the first, whose proxy is open."""
    folder = tmp_path_factory.mktemp("colleague")
    with machines.machine("colleague", folder / "machine") as machine:
        ends = ["ip", "link", "add", "eth0", "netns", str(team.machine.pid), "type", "veth"]
        subprocess.run([*ends, "peer", "name", "eth0", "netns", str(machine.pid)], check=True)
        team.types("ip address add 10.98.1.1/24 dev eth0; ip link set eth0 up")
        machine.run("ip address add 10.98.1.2/24 dev eth0; ip link set eth0 up; ip route add 10.0.0.0/8 via 10.98.1.1")
        machine.run(f"echo 10.98.1.1 {HOST} >> /etc/hosts")
        fingerprint = team.types(block("user.sh")).splitlines()[-1].split("Fingerprint=")[1]
        certificate, password = team.folder / "proxy" / f"{HOST}.pem", team.folder / "users" / "ada"
        for file in (certificate, password, team.folder.parent / "log_experiment.py"):
            machine.path(f"/root/{file.name}").write_text(file.read_text())
        assert fingerprint[: 32 * 3 - 1] in machine.run(f"cd; {block('openssl').splitlines()[0]}")
        yield machine


def browse(colleague: machines.Machine, user: str, page: str) -> str:
    """Return the HTTP status of a page on a colleague's machine; fail if the certificate is not hers."""
    command = f"curl -sS -o /dev/null -w '%{{http_code}}' --cacert {HOST}.pem --user {user} https://{HOST}:5443{page}"
    return colleague.run(f"cd; {command}")


def test_colleague_logs_by_https(team, colleague):
    """With MLflow's variables a colleague logs a complete run; the other pages open, too."""
    run = run_of(colleague.run(f"PATH={BIN}:$PATH; cd; {block('MLFLOW_TRACKING_USERNAME')}"))
    assert len(MlflowClient(MLFLOW).get_metric_history(run, "loss")) == 20
    assert [each.path for each in MlflowClient(MLFLOW).list_artifacts(run)] == ["summary.json"]
    assert [browse(colleague, "ada:$(cat ada)", page) for page in PAGES] == ["200"] * 3
    posted = f'/ajax-api/2.0/mlflow/experiments/create -X POST --json \'{{"name": "{run}"}}\' -H Origin:https://'
    assert browse(colleague, "ada:$(cat ada)", f"{posted}{HOST}:5443") == "200"  # as a browser does
    assert browse(colleague, "ada:$(cat ada)", f"{posted}elsewhere.example.org") == "403"
    wait_for(lambda: team.query("SELECT * FROM log WHERE service = 'proxy' AND message LIKE '%ada GET /adminer/%'"))


def test_without_a_password_nothing_is_open(team, colleague):
    """A wrong or missing password and a removed user are rejected; no other port, of host or containers, is open."""
    for user in ("ada:wrong", "nobody:$(cat ada)", ":"):
        assert [browse(colleague, user, page) for page in PAGES] == ["401"] * 3
    typed = block("MLFLOW_TRACKING_USERNAME").rstrip().replace("$(cat ada)", "wrong")
    assert "401" in colleague.run(f"PATH={BIN}:$PATH; cd; {typed} || echo refused")
    team.types("./user.sh add bob")
    assert browse(colleague, bob := f"bob:{(team.folder / 'users' / 'bob').read_text()}", "/") == "200"
    team.types("./user.sh remove bob")
    assert browse(colleague, bob, "/") == "401"
    assert browse(colleague, "ada:$(cat ada)", "/") == "200"
    assert {each for each in team.listeners() if not each.endswith(":53")} == {"0.0.0.0:5443"}
    for service, port in (("mlflow", 5000), ("postgres", 5432), ("adminer", 8080), ("logs", 8001)):
        address = team.types(f"podman exec team_{service}_1 hostname -i").strip()
        assert team.types(f": </dev/tcp/{address}/{port}") == ""
        assert "no" in colleague.run(f"timeout 3 bash -c ': </dev/tcp/{address}/{port}' 2>/dev/null || echo no")


def test_address_of_port_443_needs_no_port(team, colleague):
    """nginx, unprivileged, listens on port 443; MLflow accepts the address without a port, also as a page's origin."""
    team.types("echo HTTPS_PORT=443 >> .env; podman-compose up -d")
    team.wait()
    typed = block("MLFLOW_TRACKING_USERNAME").replace(f"{HOST}:5443", HOST)
    run = run_of(colleague.run(f"PATH={BIN}:$PATH; cd; {typed}"))
    assert MlflowClient(MLFLOW).get_run(run).info.status == "FINISHED"
    posted = f'/ajax-api/2.0/mlflow/experiments/create -X POST --json \'{{"name": "{run}"}}\' -H Origin:https://{HOST}'
    command = (
        f"curl -sS -o /dev/null -w '%{{http_code}}' --cacert {HOST}.pem --user ada:$(cat ada) https://{HOST}{posted}"
    )
    assert colleague.run(f"cd; {command}") == "200"
    assert "www-data" in team.types("ps -o user= -C nginx | sort -u")
    team.types("sed -i /HTTPS_PORT=443/d .env; podman-compose up -d")
    team.wait()


def test_artifacts_go_to_s3(team, colleague):
    """With ARTIFACTS a run's file is stored in the bucket and downloaded through MLflow; no description has the key."""
    secret, bucket = "s3-secret-of-the-test", team.folder.parent / "s3"
    (bucket / "team").mkdir(parents=True)
    serve = ["setpriv", "--pdeathsig=KILL", BIN / "rclone", "serve", "s3", "--addr=10.98.1.1:9000"]
    serve += [f"--auth-key=key,{secret}", bucket]
    here = team.machine
    with running(here.command(*serve), here.environment, bucket, lambda log: "Starting s3 server" in log):
        config = re.search(r"^```text\n(\[default\]\n.*?)```", README, flags=re.DOTALL | re.MULTILINE)[1]
        for value in ("key", secret):
            config = config.replace("= ...", f"= {value}", 1)
        (team.folder / "aws").write_text(config.replace("s3.example.org", "10.98.1.1"))
        team.types(block("ARTIFACTS"))
        team.wait()
        run = team.log_experiment()
        (file,) = bucket.glob(f"team/mlflow/*/{run}/artifacts/summary.json")
        assert json.loads(file.read_text()) == {"steps": 20}
        assert MlflowClient(MLFLOW).download_artifacts(run, "summary.json")
        assert secret not in team.types("podman inspect team_mlflow_1; podman logs team_mlflow_1 2>&1")
    team.types("sed -i /ARTIFACTS/d .env; podman-compose down; podman-compose up -d")
    team.wait()


def test_pipeline_runs_on_the_cluster(team):
    """Chapter 4 on these servers: all stages on Dask's workers, a model in the registry and on the dashboard."""
    team.types(block("--profile cluster"))
    team.wait()
    team.types(block("dvc repro"))
    status = team.types(f"export MLFLOW_TRACKING_URI={MLFLOW}; cd ../../4_pipeline; dvc status")
    assert re.findall(r"^\w+(?=:)", status, re.MULTILINE) == ["tracking_store"]  # which runs always
    (model,) = MlflowClient(MLFLOW).search_registered_models()
    assert model.aliases["production"] == "1"
    wait_for(lambda: requests.get("http://127.0.0.1:5505/health", timeout=60).json()["version"] == "1", BUSY_SECONDS)
    assert team.query("SELECT * FROM log WHERE service = 'dask-workers' LIMIT 1")
