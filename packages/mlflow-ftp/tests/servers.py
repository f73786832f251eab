"""The FTP server, started by `python -m mlflow_ftp.server`, on free ports and in a temporary folder."""

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
    """A server that can be killed and restarted; ``environment`` has its settings."""

    folder: Path
    environment: dict[str, str]
    process: subprocess.Popen | None = None

    @property
    def artifacts(self) -> Path:
        """The served folder."""
        return self.folder / "artifacts"

    @property
    def log(self) -> Path:
        """The file of its stderr."""
        return self.folder.with_suffix(".log")

    @property
    def host(self) -> str:
        """The address on which it listens."""
        return self.environment["MLFLOW_FTP_HOST"]

    @property
    def port(self) -> int:
        """The control port."""
        return int(self.environment["MLFLOW_FTP_PORT"])

    @property
    def passive_ports(self) -> range:
        """The passive data ports."""
        first, last = self.environment["MLFLOW_FTP_PASSIVE_PORTS"].split()
        return range(int(first), int(last) + 1)

    def start(self, *program: str) -> None:
        """Start the server and wait until it is ready; ``program`` are other arguments for Python."""
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
        """Kill the server with SIGKILL."""
        with self.process:
            self.process.kill()

    def connect(self, user: str = USER, password: str = PASSWORD) -> ftplib.FTP:
        """Return a logged-in connection."""
        connection = ftplib.FTP()
        connection.connect(self.host, self.port, timeout=10)
        try:
            connection.login(user, password)
        except ftplib.Error:
            connection.close()
            raise
        return connection

    def uri(self, scheme: str = "ftp", host: str | None = None) -> str:
        """Return the URI of an artifact store on the server."""
        host = host or self.host
        return f"{scheme}://{f'[{host}]' if ':' in host else host}:{self.port}/mlflow"

    def repository(self, folder: str = "", **address: str) -> FTPArtifactRepository:
        """Return an artifact store in a folder of the server."""
        return FTPArtifactRepository(f"{self.uri(**address)}/{folder}")


def store_file(uri: str, source: Path) -> None:
    """Store a file; at module level, so that a process can run it."""
    FTPArtifactRepository(uri).log_artifact(str(source))


def exchange_folder(uri: str, source: Path, target: Path) -> tuple[list[str], set[bytes]]:
    """Store, list, download and delete a folder; return the names and the contents."""
    store = FTPArtifactRepository(uri)
    store.log_artifacts(str(source))
    names = [info.path for info in store.list_artifacts()]
    target.mkdir()
    downloaded = Path(store.download_artifacts("", str(target)))
    contents = {file.read_bytes() for file in downloaded.iterdir()}
    store.delete_artifacts()
    return names, contents


@contextlib.contextmanager
def started_server(folder: Path, **settings: str) -> Iterator[Server]:
    """Run a server with its files in ``folder`` until the block ends."""
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
