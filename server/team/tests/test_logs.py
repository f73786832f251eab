"""The collector, the three logging scripts, `logging.yaml` and the validity of files; needs no container."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import collector
import pytest
import sqlite_utils
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from mlflow import MlflowClient
from workplace import BIN, Servers, clean_environment, free_port, new_workplace, required, running, wait_for

TEAM = Path(__file__).parents[1]
RECEIVER = """
const { FluentServer } = require("@fluent-org/logger");
const server = new FluentServer({ listenOptions: { port: +process.argv[2], host: "127.0.0.1" } });
server.on("entry", (tag, time, record) => console.log(JSON.stringify([tag, record])));
server.listen().then(() => console.log("listening"));
"""


def run(*words: str | Path, code: int = 0, cwd: Path = TEAM, **variables: str) -> str:
    """Run a Python script of the team's folder; return its stdout and stderr."""
    done = subprocess.run(
        [sys.executable, *map(str, words)], cwd=cwd, env=clean_environment() | {"PYTHONPATH": str(TEAM)} | variables,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == code, done.stdout
    return done.stdout


def collect(folder: Path, days: float = 30, megabytes: float = 1000) -> list[dict]:
    """Collect all lines; return the rows of the database in order."""
    database = collector.open_database(folder / "logs.db")
    while collector.collect(folder / "logs", database, days, megabytes):
        pass
    return list(database.query("SELECT *, rowid FROM lines ORDER BY time, rowid"))


def write(file: Path, first: int, count: int) -> None:
    """Append JSON lines with consecutive numbers."""
    file.parent.mkdir(exist_ok=True)
    with file.open("a") as output:
        for number in range(first, first + count):
            moment = f"2099-01-01T00:00:{number // 1000:02}.{number % 1000:03}+00:00"
            output.write(json.dumps({"time": moment, "level": "INFO", "service": "a", "message": f"n{number}"}) + "\n")


# -- scripts -----------------------------------------------------------------------------------------------------------
def test_scripts_from_plain_to_configured(tmp_path):
    """Plain logging drops INFO; configured by hand it is in a file; by the YAML file also as JSON with its context."""
    assert run(TEAM / "logging_plain.py", cwd=tmp_path) == "the loss does not fall\n"
    assert "INFO    experiment: training starts" in run(TEAM / "logging_by_hand.py", cwd=tmp_path)
    assert (tmp_path / "experiment.log").read_text().count("\n") == 2
    variables = {"LOG_FOLDER": str(tmp_path / "logs"), "LOG_SERVICE": "me", "DVC_STAGE": "train", "MLFLOW_RUN_ID": "7"}
    assert "INFO    me experiment: training starts" in run(TEAM / "logging_from_file.py", cwd=tmp_path, **variables)
    first, _ = map(json.loads, (tmp_path / "logs" / "me.jsonl").read_text().splitlines())
    assert {"service": "me", "stage": "train", "run_id": "7", "level": "INFO"}.items() <= first.items()
    assert first["host"]


def test_missing_configuration_is_named(tmp_path):
    """The error is one line that names the file, without a traceback."""
    printed = run(TEAM / "logging_from_file.py", "nowhere.yaml", code=1, cwd=tmp_path)
    assert printed.startswith("There is no file nowhere.yaml")
    assert printed.count("\n") == 1


def test_records_arrive_by_the_forward_protocol(tmp_path):
    """An independent receiver gets each record with its fields, even those sent before it listened."""
    required("npm", shutil.which("npm"))
    subprocess.run(["npm", "install", "--silent", "--no-save", "@fluent-org/logger@1.0.10"], cwd=tmp_path, check=True)
    (tmp_path / "receiver.js").write_text(RECEIVER)
    port = free_port()
    code = "\n".join([
        "import logging, logging.config, sys, time, yaml",
        f"logging.config.dictConfig(yaml.safe_load(open({str(TEAM / 'logging.yaml')!r})))",
        "logging.getLogger('a').info('first')",
        "time.sleep(6)",
        "try: 1 / 0",
        "except ZeroDivisionError: logging.getLogger('a').exception('Grüße')",
        "logging.shutdown()",
    ])  # fmt: skip
    variables = {"LOG_FORWARD": f"127.0.0.1:{port}", "LOG_SERVICE": "sender", "PYTHONPATH": str(TEAM)}
    sender = subprocess.Popen([sys.executable, "-c", code], env=clean_environment() | variables)
    time.sleep(2)
    with running(["node", "receiver.js", port], clean_environment(), tmp_path, lambda log: "listening" in log) as node:
        assert sender.wait(60) == 0
        wait_for(lambda: node.log.read_text().count("\n") >= 3)
        entries = [json.loads(line) for line in node.log.read_text().splitlines()[1:]]
    assert [record["message"].splitlines()[0] for _, record in entries] == ["first", "Grüße"]
    assert {tag for tag, _ in entries} == {"team"}
    assert entries[1][1]["service"] == "sender"
    assert entries[1][1]["level"] == "ERROR"
    assert "ZeroDivisionError" in entries[1][1]["message"]


@pytest.mark.night
def test_servers_of_the_workshop_log_by_the_same_file(tmp_path):
    """With WORKSHOP_LOGGING each server of `workshop up` writes JSON lines, and no password is in any log."""
    root, environment = new_workplace(tmp_path / "workshop")
    servers = Servers(root, environment | {"WORKSHOP_LOGGING": "server/team/logging.yaml"})
    try:
        done = servers.run(BIN / "workshop", "up")
        assert done.returncode == 0, done.stdout + done.stderr
        client = MlflowClient(servers.tracking_uri)
        run = client.create_run("0")
        client.log_text(run.info.run_id, "text", "a.txt")
        password = servers.settings.credentials()[1].get_secret_value()
    finally:
        servers.run(BIN / "workshop", "down")
    logs = servers.settings.logs
    services = {}
    for file in (logs / "json").glob("*.jsonl"):
        records = list(map(json.loads, file.read_text().splitlines()))
        assert {"time", "level", "service", "run_id", "stage", "host", "message"} <= records[0].keys()
        services[file.stem] = "".join(record["run_id"] for record in records)
    assert services.keys() == {"ftp", "mlflow", "dask-scheduler", "dask-workers", "dashboard"}
    assert run.info.run_id in services["mlflow"]
    assert not [file for file in logs.rglob("*") if file.is_file() and password in file.read_text(errors="replace")]


# -- collector ---------------------------------------------------------------------------------------------------------
def test_line_is_stored_once_despite_rotation_and_lost_positions(tmp_path):
    """After a repeated read, renaming, rotation and lost positions, every line is stored once."""
    file = tmp_path / "logs" / "a.jsonl"
    write(file, 0, 100)
    assert len(collect(tmp_path)) == 100
    file.rename(tmp_path / "logs" / "a.jsonl.1")
    write(tmp_path / "logs" / "a.jsonl.1", 100, 50)
    write(file, 150, 50)
    assert len(collect(tmp_path)) == 200
    sqlite_utils.Database(tmp_path / "logs.db")["files"].delete_where()
    assert [row["message"] for row in collect(tmp_path)] == [f"n{number}" for number in range(200)]
    rows = sqlite_utils.Database(tmp_path / "logs.db")["lines"].search("n17")
    assert [row["message"] for row in rows] == ["n17"]


def test_killed_collector_loses_and_duplicates_nothing(tmp_path):
    """A collector that is killed repeatedly while lines are written stores each line once."""
    write(tmp_path / "logs" / "a.jsonl", 0, 20_000)
    limits = yaml.safe_load((TEAM / "compose.yaml").read_text())["services"]["collector"]["command"][4:]
    assert limits == ["--days=30", "--megabytes=1000"]
    command = [sys.executable, TEAM / "collector.py", tmp_path / "logs", tmp_path / "logs.db", *limits]
    for kill in range(3):
        program = subprocess.Popen(command, env=clean_environment(), stderr=subprocess.DEVNULL)
        write(tmp_path / "logs" / "b.jsonl", 20_000 + kill * 2000, 2000)
        wait_for((tmp_path / "alive").exists if kill == 2 else (tmp_path / "logs.db").exists)
        time.sleep(0.5 * kill)
        program.kill()
        program.wait()
    messages = [row["message"] for row in collect(tmp_path)]
    assert sorted(messages) == sorted(f"n{number}" for number in range(26_000))


def test_lines_of_other_programs(tmp_path):
    """PostgreSQL's JSON fields are renamed, plain text is the message; the search finds words of both."""
    folder = tmp_path / "logs"
    folder.mkdir()
    record = {"timestamp": "2026-11-22 08:06:00.334 UTC", "error_severity": "LOG", "message": "is ready", "pid": 1}
    (folder / "postgres-7.json").write_text(json.dumps(record) + "\n")
    (folder / "adminer.log").write_text("[200]: GET /\n")
    assert collect(tmp_path)[0]["time"] == "2026-11-22T08:06:00.334+00:00"
    lines = sqlite_utils.Database(tmp_path / "logs.db")["lines"]
    for word, expected in (("read*", ("postgres", "LOG", "is ready")), ("get", ("adminer", "INFO", "[200]: GET /"))):
        assert [(row["service"], row["level"], row["message"]) for row in lines.search(word)] == [expected]


def test_old_lines_are_deleted_by_age_and_by_size(tmp_path):
    """Lines older than the limit, and the oldest of a too large database, are deleted and not collected again."""
    file = tmp_path / "logs" / "a.jsonl"
    write(file, 0, 3000)
    with file.open("a") as output:
        output.write('{"time": "2001-01-01T00:00:00+00:00", "message": "old"}\n')
    rows = collect(tmp_path, megabytes=0.3)
    assert "old" not in {row["message"] for row in rows}
    assert 0 < len(rows) < 3000
    assert rows[-1]["message"] == "n2999"
    assert len(collect(tmp_path)) == len(rows)


ODD_LINES = [
    rb'{"message": "\ud800"}', rb'{"message": {"a": ["\ud800"]}, "service": "\udcff"}',
    b'{"time": "0001-01-01T00:00:00+23:59", "message": "early"}', b'{"time": "9999-12-31T23:59:59-23:59"}',
    b'{"time": [1], "message": "odd"}', b'{"time": "yesterday", "message": "odd"}', b'{"time": 1e999}',
    b'{"message": "\0", "level": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", b"[" * 200_000, b"\0\0", b"\xed\xa0\x80",
    b'{"run_id": 1' + b"0" * 5000 + b"}", b'{"level": {"a": NaN}, "service": 10000000000000000000000, "stage": true}',
    b'{"no": "message"}', b"null", b'"text"', b"[1, 2]", b"1", b"", b"\r", b"\x85\xe2\x80\xa8",
]  # fmt: skip


def test_no_line_and_no_file_stops_the_collector(tmp_path):
    """A line that cannot be parsed or stored is stored as text; anything but a regular file is skipped."""
    folder = tmp_path / "logs"
    (folder / "a.folder").mkdir(parents=True)
    os.mkfifo(folder / "b.pipe")
    (tmp_path / "secret").write_text("secret\n")
    (folder / "c.link").symlink_to(tmp_path / "secret")
    (folder / "d.log").write_bytes(b"\n".join([*ODD_LINES, b""]))
    (folder / os.fsdecode(b"e\xff.log")).write_text("name\n")
    (folder / "z.log").write_text("last\n")
    rows = sorted(collect(tmp_path), key=lambda row: row["rowid"])
    expected = [line.decode(errors="replace").rstrip("\r") for line in ODD_LINES]
    assert [row["message"] for row in rows] == [*expected, "name", "last"]
    assert {("10000000000000000000000", '{"a": NaN}', "true")} <= {(r["service"], r["level"], r["stage"]) for r in rows}


def test_compressed_files_are_skipped(tmp_path, caplog):
    """Compressed files, as from logrotate with `delaycompress`, add no lines: theirs were collected before."""
    file = tmp_path / "logs" / "a.log"
    write(file, 0, 3000)
    rows = collect(tmp_path)
    assert [row["message"] for row in rows] == [f"n{number}" for number in range(3000)]
    for suffix, compress in (("gz", gzip.compress), ("bz2", bz2.compress), ("xz", lzma.compress)):
        file.with_name(f"a.log.2.{suffix}").write_bytes(compress(file.read_bytes()))
        assert collect(tmp_path) == rows
        assert f"not collected: 'a.log.2.{suffix}': it is compressed" in caplog.text


def test_long_line_is_split(tmp_path):
    """Lines longer than a batch are stored completely, in parts, and so are the lines after them."""
    (tmp_path / "logs").mkdir()
    long = "x" * (collector.BATCH_BYTES + 10)
    (tmp_path / "logs" / "a.log").write_text(f"{long}\nshort\n{long}\nlast\n")
    rows = list(collect(tmp_path))
    assert sorted(len(row["message"]) for row in rows) == [4, 5, 10, 10, collector.BATCH_BYTES, collector.BATCH_BYTES]


class Log:
    """A program's log, rotated by renaming or by copying and truncating; each of its files starts with a line."""

    def __init__(self, path: Path) -> None:
        self.path, self.unwritten, self.lines = path, b"", Counter()
        self.open()

    def open(self) -> None:
        """Start a new file, or continue the truncated one."""
        self.file, self.is_new = self.path.open("ab", buffering=0), True
        self.add(b"head")

    def add(self, line: bytes) -> None:
        """Add a line to the program's buffer."""
        self.lines[line.decode(errors="replace")] += 1
        self.unwritten += line + b"\n"

    def write(self, share: float = 1) -> None:
        """Write a share of the program's buffer."""
        size = int(len(self.unwritten) * share)
        self.file.write(self.unwritten[:size])
        self.unwritten = self.unwritten[size:]

    def shift(self) -> Path:
        """Rename the older files; return the name of the next rotated file."""
        names = [self.path.with_name(f"{self.path.name}.{number}") for number in (1, 2, 3)]
        for old, new in ((names[1], names[2]), (names[0], names[1])):
            if old.exists():
                old.replace(new)
        return names[0]


def steps() -> st.SearchStrategy:
    """Return events of two logs; a share says how much of an event has happened when the collector reads."""
    bodies = st.lists(st.binary(max_size=30).map(lambda body: body.replace(b"\n", b"\0")), min_size=1, max_size=8)
    log, share = st.integers(0, 1), st.one_of(st.just(1), st.floats(0, 1))
    return st.lists(
        st.one_of(
            st.tuples(st.just("write"), log, bodies, share),
            st.tuples(st.sampled_from(["rename", "copy"]), log, st.booleans(), share),
            st.tuples(st.sampled_from(["look", "look", "restart"])),
        ),
        max_size=25,
    )


@settings(max_examples=500, derandomize=True, database=None, deadline=None)
@given(steps=steps())
def test_no_line_is_lost_or_duplicated(steps):
    """Any lines are stored once, if written in parts, rotated, collected and restarted at any time."""
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as name:
        patch.setattr(collector, "BATCH_BYTES", 100)
        (folder := Path(name) / "logs").mkdir()
        logs = [Log(folder / "a.log"), Log(folder / "b.log")]
        database, number = collector.open_database(Path(name) / "logs.db"), 0
        for action, *details in steps:
            log = logs[details[0]] if details else None
            if action == "write":
                for body in details[1]:
                    log.add(body + b"#%d" % (number := number + 1))
                log.write(details[2])
                log.is_new = False
            elif action == "restart":
                database.close()
                database = collector.open_database(Path(name) / "logs.db")
            elif action == "look":
                collector.collect(folder, database, 30, 1000)
            elif not log.is_new:
                if (folder / f"{log.path.name}.3").exists():  # it will be deleted, so read it to its end
                    collect(Path(name))
                if action == "copy":
                    log.write()
                content, target = log.path.read_bytes(), log.shift()
                if action == "rename":
                    log.path.replace(target)
                else:
                    target.write_bytes(content[: int(len(content) * details[2])])
                    if details[1]:
                        collector.collect(folder, database, 30, 1000)
                    target.write_bytes(content)
                if details[1]:
                    collector.collect(folder, database, 30, 1000)
                log.write()  # the program finishes its line in the renamed file, which it still has open
                if action == "copy":
                    os.truncate(log.path, 0)
                log.file.close()
                log.open()
        for log in logs:
            log.write()
            log.file.close()
        messages = Counter(row["message"] for row in collect(Path(name)))
        assert messages == logs[0].lines + logs[1].lines
        database.close()


# -- files -------------------------------------------------------------------------------------------------------------
def test_files_are_valid():
    """The compose file matches its schema (and Docker's), the Containerfile passes its linter, scripts parse."""
    file = TEAM / "compose.yaml"
    subprocess.run([BIN / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", file], check=True)
    if subprocess.run("docker compose version", shell=True, capture_output=True, check=False).returncode == 0:
        subprocess.run(["docker", "compose", "--file", file, "--profile", "cluster", "config", "--quiet"], check=True)
    subprocess.run([BIN / "hadolint", TEAM / "Containerfile"], check=True)
    for script in TEAM.glob("*.sh"):
        subprocess.run(["bash", "-n", script], check=True)
        assert os.access(script, os.X_OK)


def test_published_ports_are_on_loopback_and_services_restart():
    """No port is open to other machines; each service has a memory limit, a health check and a restart policy."""
    services = yaml.safe_load((TEAM / "compose.yaml").read_text())["services"]
    for name, service in services.items():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), name
        assert {"restart", "mem_limit", "healthcheck", "security_opt"} <= service.keys(), name


def test_password_is_private_and_kept(tmp_path):
    """The password is random, in a file of mode 0600, and kept when the script runs again."""
    shutil.copy(TEAM / "secrets.sh", tmp_path)
    for _ in range(2):
        printed = subprocess.run([tmp_path / "secrets.sh"], check=True, capture_output=True, text=True).stdout
        file = tmp_path / "secrets" / "postgres_password"
        assert file.stat().st_mode & 0o777 == 0o600
        assert (tmp_path / "secrets").stat().st_mode & 0o777 == 0o700
        password = file.read_text()
        assert re.fullmatch(r"[0-9a-f]{48}", password)
        assert password not in printed
    assert file.read_text() == password


@pytest.mark.parametrize("words", [[], ["add"], ["add", "a b"], ["add", "a:b"], ["remove", "-x"], ["list", "ada"]])
def test_invalid_arguments_of_user_sh_are_explained(words, tmp_path):
    """Without a list of users, or with a wrong action or name, user.sh prints the next step and changes no file."""
    shutil.copy(TEAM / "user.sh", tmp_path)
    command = [tmp_path / "user.sh", *words]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert (done.returncode, done.stderr.split("Next: ")[1]) == (1, "./secrets.sh\n")
    (tmp_path / "secrets" / "proxy").mkdir(parents=True)
    (users := tmp_path / "secrets" / "proxy" / "users").write_text("ada:hash\n")
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 2
    assert f"'{' '.join(words)}'. Type ./user.sh add NAME" in done.stderr
    assert users.read_text() == "ada:hash\n"


def test_backup_without_a_folder_is_explained(tmp_path):
    """Without a folder, both scripts exit 2 and print their usage."""
    for words in (["backup.sh"], ["restore.sh"], ["restore.sh", tmp_path]):
        done = subprocess.run([TEAM / words[0], *words[1:]], check=False, capture_output=True, text=True)
        assert done.returncode == 2
        assert f"./{words[0]} FOLDER" in done.stderr
