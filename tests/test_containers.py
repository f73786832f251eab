"""The devcontainer and Binder: valid configuration files, whose commands are run."""

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
PYTHON = (BIN / "python").resolve()  # the interpreter of this environment
# Settings of the package index on this machine; a container has its own.
NETWORK = re.compile(r"(SSL_CERT|PIP_|UV_|https?_proxy|no_proxy|REQUESTS_CA)", re.IGNORECASE)


# -- formats -----------------------------------------------------------------------------------------------------------
def test_devcontainer_forwards_the_ports_of_the_servers():
    """All ports have a label; VS Code recommends its extensions; the Python version is supported."""
    ports = {name: field.default for name, field in Settings.model_fields.items() if name.endswith("_port")}
    pages = {port for name, port in ports.items() if name not in ("ftp_port", "dask_port")}
    assert set(DEVCONTAINER["forwardPorts"]) == {8888, *pages}
    assert {int(port) for port in DEVCONTAINER["portsAttributes"]} == {8888, *pages}
    recommended = json.loads((ROOT / ".vscode" / "extensions.json").read_text())["recommendations"]
    assert "iterative.dvc" in recommended == DEVCONTAINER["customizations"]["vscode"]["extensions"]
    assert re.fullmatch(r"mcr\.microsoft\.com/devcontainers/python:3\.1[123]-\w+", DEVCONTAINER["image"])


def test_binder_can_build_an_image():
    """repo2docker reads the Python version and both commands; test dependencies are not installed."""
    command = [sys.executable, "-m", "repo2docker", "--no-build", "--debug", "."]
    done = run_program(*command, cwd=ROOT, env=os.environ | {"PATH": ""})
    assert "environment-2epy-2d3-2e12-" in done.stdout  # the lock for this Python version
    assert "RUN ./.binder/postBuild" in done.stdout
    assert 'R2D_ENTRYPOINT="${REPO_DIR}/.binder/start"' in done.stdout
    assert "requirements.txt" not in done.stdout


# -- commands ----------------------------------------------------------------------------------------------------------
def empty_environment(home: Path, python: Path) -> dict[str, str]:
    """Return the environment of a container: home, system programs, a Python, and the package index."""
    network = {name: value for name, value in os.environ.items() if NETWORK.match(name)}
    return network | {"HOME": str(home), "PATH": f"{python.parent}:/usr/local/bin:/usr/bin:/bin"}


@pytest.fixture
def installed(tmp_path) -> Path:
    """A clone that uses this environment, as after the installation."""
    root = copy_tree(tmp_path / "clone")
    (root / ".venv" / "bin").mkdir(parents=True)
    for program in BIN.iterdir():
        (root / ".venv" / "bin" / program.name).symlink_to(program)
    return root


def test_binder_starts_the_workshop(installed):
    """Its command is found, the workshop's programs come first, one worker is all, and the pages' settings are ours."""
    port = free_port()  # 5000 may be used by another clone
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
def test_empty_container_becomes_a_workplace(kind, tmp_path):
    """With a clone and a bare Python, the commands install everything and JupyterLab opens."""
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
