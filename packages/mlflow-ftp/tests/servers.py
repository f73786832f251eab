"""The FTP server as a person starts it, `python -m mlflow_ftp.server`, on free ports and in a temporary folder."""

from __future__ import annotations

import contextlib
import ftplib
import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mlflow_ftp.repository import FTPArtifactRepository
from programs import free_port

USER, PASSWORD = "tester", "correct horse battery"
PASSIVE_PORTS = 40


@dataclass
class Server:
    """A server, which may be killed and started again; ``environment`` is its own."""

    folder: Path
    environment: dict[str, str]
    process: subprocess.Popen | None = None

    @property
    def artifacts(self) -> Path:
        """The folder that it serves."""
        return self.folder / "artifacts"

    @property
    def log(self) -> Path:
        """What it writes to stderr."""
        return self.folder.with_suffix(".log")

    @property
    def host(self) -> str:
        """Where it listens."""
        return self.environment["MLFLOW_FTP_HOST"]

    @property
    def port(self) -> int:
        """Its port for commands."""
        return int(self.environment["MLFLOW_FTP_PORT"])

    @property
    def passive_ports(self) -> range:
        """Its ports for data."""
        first, last = self.environment["MLFLOW_FTP_PASSIVE_PORTS"].split()
        return range(int(first), int(last) + 1)

    def start(self, *program: str) -> None:
        """Start it and wait until it is ready; ``program`` are other arguments of Python that start it."""
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                [sys.executable, *(program or ("-m", "mlflow_ftp.server"))],
                env=os.environ | self.environment,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        assert f":{self.port}, files in {self.artifacts}" in self.process.stdout.readline(), self.log.read_text()

    def kill(self) -> None:
        """End it without a chance to clean up."""
        with self.process:
            self.process.kill()

    def connect(self, user: str = USER, password: str = PASSWORD) -> ftplib.FTP:
        """Return a connection that is logged in."""
        connection = ftplib.FTP()
        connection.connect(self.host, self.port, timeout=10)
        try:
            connection.login(user, password)
        except ftplib.Error:
            connection.close()
            raise
        return connection

    def uri(self, scheme: str = "ftp", host: str | None = None) -> str:
        """Return the address of a store on it."""
        host = host or self.host
        return f"{scheme}://{f'[{host}]' if ':' in host else host}:{self.port}/mlflow"

    def repository(self, folder: str = "", **address: str) -> FTPArtifactRepository:
        """Return a store in a folder of the server."""
        return FTPArtifactRepository(f"{self.uri(**address)}/{folder}")


def store_file(uri: str, source: Path) -> None:
    """Store a file; a program of its own can be started with this."""
    FTPArtifactRepository(uri).log_artifact(str(source))


def exchange_folder(uri: str, source: Path, target: Path) -> tuple[list[str], set[bytes]]:
    """Store a folder, list it, fetch it and delete it, and stay for a while; return the names and the contents."""
    store = FTPArtifactRepository(uri)
    store.log_artifacts(str(source))
    names = [info.path for info in store.list_artifacts()]
    target.mkdir()
    fetched = Path(store.download_artifacts("", str(target)))
    contents = {file.read_bytes() for file in fetched.iterdir()}
    store.delete_artifacts()
    return names, contents


@contextlib.contextmanager
def started_server(folder: Path, **settings: str) -> Iterator[Server]:
    """Start a server with its files in ``folder``, and end it."""
    first = secrets.choice(range(20_000, 30_000))
    environment = {
        "MLFLOW_FTP_FOLDER": str(folder),
        "MLFLOW_FTP_HOST": "127.0.0.1",
        "MLFLOW_FTP_PORT": str(free_port()),
        "MLFLOW_FTP_PASSIVE_PORTS": f"{first} {first + PASSIVE_PORTS - 1}",
        "MLFLOW_FTP_USERNAME": USER,
        "MLFLOW_FTP_PASSWORD": PASSWORD,
    }
    server = Server(folder, environment | {f"MLFLOW_FTP_{name.upper()}": value for name, value in settings.items()})
    server.start()
    try:
        yield server
    finally:
        server.kill()
