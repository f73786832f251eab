"""JupyterLab's tiles and start page without a browser: a Jupyter server as configured here, and servers behind it."""

from __future__ import annotations

import contextlib
import functools
import http.server
import json
import multiprocessing
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from attendee import new_repository
from workplace import BIN, ROOT, clean_environment, free_port, jupyter_in, running

TOKEN = "of-this-test"
MLFLOW_LINK = "http://127.0.0.1:{}/#/experiments/1"


class Echo(http.server.BaseHTTPRequestHandler):
    """Handler that answers with the request's headers as the proxied server receives them."""

    def do_GET(self) -> None:
        """Answer."""
        body = json.dumps(dict(self.headers)).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET

    def log_message(self, *_) -> None:
        """Log nothing."""


def serve_echo(state: Path, ports: multiprocessing.SimpleQueue) -> None:
    """Serve Echo with a state folder's database open, until terminated."""
    with (state / "mlflow.db").open("a"), http.server.ThreadingHTTPServer(("127.0.0.1", 0), Echo) as server:
        ports.put(server.server_address[1])
        server.serve_forever()


@contextlib.contextmanager
def echo(state: Path) -> Iterator[int]:
    """Run such a server in a separate process (files left open by other tests would indicate other owners)."""
    spawn = multiprocessing.get_context("spawn")
    ports = spawn.SimpleQueue()
    process = spawn.Process(target=serve_echo, args=(state, ports))
    process.start()
    try:
        yield ports.get()
    finally:
        process.terminate()
        process.join()


class Jupyter:
    """A Jupyter server, with the folder that replaces the repository."""

    def __init__(self, url: str, root: Path) -> None:
        self.root = root
        self.state = root / "server" / "state"
        self.state.mkdir(parents=True, exist_ok=True)
        self.get = functools.partial(self._ask, "GET", url)
        self.post = functools.partial(self._ask, "POST", url)

    def _ask(self, method: str, url: str, path: str, **headers: str) -> requests.Response:
        headers = {"Authorization": f"token {TOKEN}", **headers}
        return requests.request(method, f"{url}/{path}", headers=headers, timeout=60, allow_redirects=False)

    def take_ports(self, **ports: int) -> None:
        """Write ports as `workshop up` does."""
        (self.state / "ports.json").write_text(json.dumps(ports))


@pytest.fixture(scope="module")
def jupyter(tmp_path_factory) -> Iterator[Jupyter]:
    """A Jupyter server with a base URL, as on a hub; the servers of its tiles are down."""
    root, home = new_repository(tmp_path_factory.mktemp("root")), tmp_path_factory.mktemp("home")
    environment = clean_environment() | {
        "WORKSHOP_ROOT": str(root),
        "HOME": str(home),
        "JUPYTER_CONFIG_PATH": str(ROOT / "server" / "jupyter"),
        "JUPYTER_RUNTIME_DIR": str(home),
        "JUPYTER_TOKEN": TOKEN,
    }
    command = [BIN / "jupyter-server", "--no-browser", f"--port={free_port()}", "--ServerApp.base_url=/user/x/"]
    with running(command, environment, root, lambda _: jupyter_in(home)) as server:
        yield Jupyter(server.ready.rstrip("/"), root)


def test_tile_says_what_to_type_when_its_server_is_down_and_follows_its_port(jupyter):
    """The tile shows the command to type; as soon as the server runs, on any port, the tile shows its page."""
    jupyter.take_ports(mlflow_port=free_port())
    absent = jupyter.get("mlflow/")
    assert absent.status_code == 503
    assert "<code>workshop up</code>" in absent.text
    with echo(jupyter.state) as first:
        jupyter.take_ports(mlflow_port=first)
        assert jupyter.get("mlflow/").status_code == 200
    with echo(jupyter.state) as second:
        jupyter.take_ports(mlflow_port=second)
        assert jupyter.get("mlflow/").json()["Host"] == f"127.0.0.1:{second}"


def test_tile_shows_no_server_of_another_clone(jupyter, tmp_path):
    """If another clone's server listens on the port, the tile says so and forwards nothing."""
    with echo(tmp_path) as stranger:
        jupyter.take_ports(mlflow_port=stranger)
        answer = jupyter.get("mlflow/")
    assert answer.status_code == 503
    assert f"used by another clone: {tmp_path}" in answer.text


def test_tile_refuses_what_another_site_sends(jupyter):
    """Pages of other sites cannot write through the tile, JupyterLab's own can; without a token nothing can be read."""
    with echo(jupyter.state) as port:
        jupyter.take_ports(mlflow_port=port)
        answer = jupyter.post("mlflow/ajax-api/2.0/mlflow/runs/search", Origin=jupyter.get.args[1][: -len("/user/x")])
        assert answer.json()["Origin"] == f"http://127.0.0.1:{port}"
        assert jupyter.post("mlflow/", Origin="http://evil.example", Authorization="").status_code == 403
        assert jupyter.get("mlflow/", Authorization="").status_code == 302  # to the page that asks for the token


def test_report_tile_shows_the_report_without_scripts(jupyter):
    """A missing report is explained; an existing one is shown unchanged, but with links through JupyterLab."""
    assert "<code>workshop repro</code>" in jupyter.get("report/").text
    jupyter.take_ports(mlflow_port=5001)
    results = jupyter.root / "4_pipeline" / "results"
    results.mkdir(parents=True)
    (results / "report.html").write_text(f'<style>h1 {{}}</style><a href="{MLFLOW_LINK.format(5001)}">run</a>')
    answer = jupyter.get("report/")
    assert answer.status_code == 200
    assert re.search(r'href="([^"]*)"', answer.text)[1] == "/user/x/mlflow/#/experiments/1"
    assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
    assert "script-src" not in answer.headers["Content-Security-Policy"]


def test_start_page_is_written_when_it_is_read_and_the_metadata_of_the_package_is_hidden(jupyter):
    """A missing or old page is written; a new one is shown unchanged, and listing the files does not rewrite it."""
    (jupyter.root / "workshop.egg-info").mkdir()
    page = jupyter.root / "START.md"

    def contents(name: str = "", content: int = 1) -> str | list[dict]:
        return jupyter.get(f"api/contents/{name}?content={content}").json()["content"]

    assert contents("START.md", content=0) is None  # JupyterLab's request before it opens a file
    assert "**Next: Weather and power in one table**" in contents("START.md")
    page.write_text("new")
    assert contents("START.md") == "new"
    os.utime(page, (0, 0))
    assert (contents("START.md", content=0), page.read_text()) == (None, "new")
    assert {each["name"] for each in contents()} == {"4_pipeline", "START.md", "pyproject.toml", "server"}
    assert page.read_text() == "new"
    assert "**Next: " in contents("START.md")
