"""Rooms without laptops: the devcontainer and Binder, checked against their formats, their commands run for real."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest
from workplace import BIN, ROOT, answer_of, copy_tree, free_port, processes_of, run_program, running

from workshop.settings import Settings

DEVCONTAINER = json.loads((ROOT / ".devcontainer" / "devcontainer.json").read_text())
PYTHON = (BIN / "python").resolve()  # that this environment was made with
# How this machine reaches its package index; a container has its own way.
NETWORK = re.compile(r"(SSL_CERT|PIP_|UV_|https?_proxy|no_proxy|REQUESTS_CA)", re.IGNORECASE)


# -- formats -----------------------------------------------------------------------------------------------------------
def test_devcontainer_forwards_the_ports_that_the_servers_take():
    """JupyterLab's and the pages', each with a label; VS Code recommends its extensions; the Python is promised."""
    ports = {name: field.default for name, field in Settings.model_fields.items() if name.endswith("_port")}
    pages = {port for name, port in ports.items() if name not in ("ftp_port", "dask_port")}
    assert set(DEVCONTAINER["forwardPorts"]) == {8888, *pages}
    assert {int(port) for port in DEVCONTAINER["portsAttributes"]} == {8888, *pages}
    recommended = json.loads((ROOT / ".vscode" / "extensions.json").read_text())["recommendations"]
    assert "iterative.dvc" in recommended == DEVCONTAINER["customizations"]["vscode"]["extensions"]
    assert re.fullmatch(r"mcr\.microsoft\.com/devcontainers/python:3\.1[123]-\w+", DEVCONTAINER["image"])


def test_binder_makes_an_image_of_it():
    """Binder's own builder reads the folder: the Python, both commands; what only tests need is not installed."""
    command = [sys.executable, "-m", "repo2docker", "--no-build", "--debug", "."]
    done = run_program(*command, cwd=ROOT, env=os.environ | {"PATH": ""})
    assert "environment-2epy-2d3-2e12-" in done.stdout  # the lock for the Python that is named
    assert "RUN ./.binder/postBuild" in done.stdout
    assert 'R2D_ENTRYPOINT="${REPO_DIR}/.binder/start"' in done.stdout
    assert "requirements.txt" not in done.stdout


# -- commands ----------------------------------------------------------------------------------------------------------
def empty_environment(home: Path, python: Path) -> dict[str, str]:
    """Return the environment of a container: a home, the system's programs, a Python, and how to reach packages."""
    network = {name: value for name, value in os.environ.items() if NETWORK.match(name)}
    return network | {"HOME": str(home), "PATH": f"{python.parent}:/usr/local/bin:/usr/bin:/bin"}


@pytest.fixture
def installed(tmp_path) -> Path:
    """A clone of which the environment is this one, as after the installation."""
    root = copy_tree(tmp_path / "clone")
    (root / ".venv" / "bin").mkdir(parents=True)
    for program in BIN.iterdir():
        (root / ".venv" / "bin" / program.name).symlink_to(program)
    return root


def test_binder_starts_what_it_is_asked_to_start(installed):
    """Its command is found, the workshop's programs come first, one worker is all, and the pages' settings are ours."""
    port = free_port()  # 5000 may be another clone's
    environment = empty_environment(installed, PYTHON) | {"WORKSHOP_ROOT": str(installed), "PYTHONPATH": str(ROOT)}
    environment["WORKSHOP_MLFLOW_PORT"] = str(port)
    script = "command -v jupyter-lab; echo $WORKSHOP_DASK_WORKERS $MLFLOW_TRACKING_URI $JUPYTER_CONFIG_PATH"
    output = run_program(installed / ".binder" / "start", "bash", "-c", script, cwd=Path("/"), env=environment)
    program, line = output.stdout.splitlines()
    assert Path(program).resolve() == (BIN / "jupyter-lab").resolve()
    assert line == f"1 http://127.0.0.1:{port} {installed / 'server' / 'jupyter'}"


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kind", ["devcontainer", "binder"])
def test_empty_container_becomes_a_room(kind, tmp_path):
    """From a clone and a bare Python: the commands install everything, and JupyterLab shows its page."""
    root, port = copy_tree(tmp_path / "clone"), free_port()
    home = root if kind == "binder" else tmp_path / "home"
    home.mkdir(exist_ok=True)
    environment = empty_environment(home, PYTHON)
    options = ["--no-browser", f"--port={port}", "--IdentityProvider.token=secret"]
    if kind == "binder":
        run_program("bash", "-c", "chmod +x .binder/postBuild && ./.binder/postBuild", cwd=root, env=environment)
        assert run_program("git", "status", "--porcelain", cwd=root, env=environment).stdout == ""
        command = [str(root / ".binder" / "start"), "jupyter-lab", "--ip=127.0.0.1", *options]
    else:
        run_program("bash", "-c", DEVCONTAINER["onCreateCommand"], cwd=root, env=environment)
        command = ["bash", "-c", f"exec {DEVCONTAINER['postAttachCommand']} {shlex.join(options)}"]
    try:
        with running(
            command, environment, root, lambda _: answer_of(f"http://127.0.0.1:{port}/lab?token=secret")
        ) as lab:
            assert "JupyterLab" in lab.ready.text
        run_program(root / ".venv" / "bin" / "workshop", "doctor", cwd=root, env=environment)
    finally:
        run_program(root / ".venv" / "bin" / "workshop", "down", cwd=root, env=environment)
        shutil.rmtree(root / ".venv")
    assert not processes_of(root)
