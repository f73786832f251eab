"""Settings from the environment, `.env` and the state folder: host, ports, addresses, credentials and paths."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import tempfile
from pathlib import Path
from typing import Any

from dashboard.hosts import is_loopback
from forecast.terms.errors import SettingsError
from pydantic import Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, JsonConfigSettingsSource, SettingsConfigDict

PORTS_FILE, PID_FILE = "ports.json", "supervisord.pid"  # in the state folder


def find_root(start: Path | None = None) -> Path:
    """Return the repository's root: `WORKSHOP_ROOT`, else the clone that contains ``start``, else this file's clone.

    ``start`` defaults to the current folder, so commands typed in a second clone act on that clone.
    """
    if root := os.environ.get("WORKSHOP_ROOT"):
        return Path(root).resolve()
    start = (start or Path.cwd()).resolve()
    for folder in (start, *start.parents):
        if (folder / "4_pipeline").is_dir() and (folder / "pyproject.toml").is_file():
            return folder
    return Path(__file__).resolve().parent.parent


class Settings(BaseSettings):
    """All addresses and paths. Priority: running servers' ports, environment, `.env`, stopped servers' ports, defaults.

    ``WORKSHOP_<FIELD>`` sets a field; the tracking and scheduler addresses use the variables of MLflow and Dask.
    """

    model_config = SettingsConfigDict(env_prefix="WORKSHOP_", extra="ignore")

    root: Path = Field(default_factory=find_root)
    state: Path = Path("server/state")
    offline: Path | None = None
    logging: Path | None = None
    host: str = "127.0.0.1"
    ftp_port: int = Field(2121, ge=1, le=65535)
    ftp_passive_first: int = Field(60100, ge=1024, le=65535)
    ftp_passive_count: int = Field(40, ge=1, le=1000)
    ftp_user: str = "workshop"
    ftp_password: SecretStr | None = None
    ftp_tls: bool | None = None
    mlflow_port: int = Field(5000, ge=1, le=65535)
    database_uri: SecretStr | None = None  # PostgreSQL instead of an SQLite file
    dask_port: int = Field(8786, ge=1, le=65535)
    dask_dashboard_port: int = Field(8787, ge=1, le=65535)
    dask_workers: int = Field(default_factory=lambda: os.cpu_count() or 1, ge=1)
    dashboard_port: int = Field(8050, ge=1, le=65535)
    mlflow_tracking_uri: str | None = Field(None, validation_alias="MLFLOW_TRACKING_URI")
    dask_scheduler_address: str | None = Field(None, validation_alias="DASK_SCHEDULER_ADDRESS")
    exported: str = ""  # separated by spaces: the two addresses that `exports_of` set (or -), and the state folder

    @classmethod
    def settings_customise_sources(  # type: ignore[override] # unused sources are collected in **_
        cls, settings_cls: Any, init_settings: Any, env_settings: Any, dotenv_settings: Any, **_: Any
    ) -> Any:
        """Give the ports of running servers the highest priority, those of stopped servers the lowest."""
        root = find_root()
        dotenv = type(dotenv_settings)(settings_cls, env_file=root / ".env")
        state = Path(os.environ.get("WORKSHOP_STATE") or dotenv.env_vars.get("workshop_state") or "server/state")
        ports = JsonConfigSettingsSource(settings_cls, json_file=root / state / PORTS_FILE)
        if (root / state / PID_FILE).exists():
            return init_settings, ports, env_settings, dotenv
        return init_settings, env_settings, dotenv, ports

    def model_post_init(self, _context: Any) -> None:
        """Resolve the state folder relative to the root."""
        self.state = (self.root / self.state).resolve()

    # -- addresses -------------------------------------------------------------------------------------------
    @property
    def tracking_uri(self) -> str:
        """The URI of the MLflow tracking server: set by the user, else this clone's own."""
        return self.explicit_tracking_uri or f"http://{self.host}:{self.mlflow_port}"

    @property
    def scheduler_address(self) -> str:
        """The address of the Dask scheduler: set by the user, else this clone's own."""
        return self.explicit_scheduler_address or f"tls://{self.host}:{self.dask_port}"

    @property
    def explicit_tracking_uri(self) -> str | None:
        """MLFLOW_TRACKING_URI if the user set it; None if `exports_of` did, because its port may be outdated."""
        return None if self._is_exported(self.mlflow_tracking_uri) else self.mlflow_tracking_uri

    @property
    def explicit_scheduler_address(self) -> str | None:
        """DASK_SCHEDULER_ADDRESS if the user set it, else None."""
        return None if self._is_exported(self.dask_scheduler_address) else self.dask_scheduler_address

    def _is_exported(self, address: str | None) -> bool:
        *addresses, state = self.exported.split(" ", 2)
        return state == str(self.state) and address in addresses

    @property
    def dask_dashboard_url(self) -> str:
        """The URL of Dask's dashboard."""
        return f"http://{self.host}:{self.dask_dashboard_port}/status"

    @property
    def dashboard_url(self) -> str:
        """The URL of the workshop's dashboard."""
        return f"http://{self.host}:{self.dashboard_port}"

    @property
    def artifacts_uri(self) -> str:
        """The tracking server's artifact location, without user and password."""
        return f"{self.ftp_uri}/mlflow"

    @property
    def ftp_uri(self) -> str:
        """The URI of the FTP server."""
        return f"{'ftps' if self.ftp_requires_tls else 'ftp'}://{self.host}:{self.ftp_port}"

    @property
    def ftp_requires_tls(self) -> bool:
        """Whether the FTP server requires TLS; by default, only if other machines can reach it."""
        return not is_loopback(self.host) if self.ftp_tls is None else self.ftp_tls

    @property
    def ftp_passive_ports(self) -> range:
        """The passive ports of the FTP server, for data connections."""
        return range(self.ftp_passive_first, self.ftp_passive_first + self.ftp_passive_count)

    @property
    def ports_file(self) -> Path:
        """The file with the ports that `workshop up` used last; the next `up` reuses those that are free."""
        return self.state / PORTS_FILE

    @property
    def pid_file(self) -> Path:
        """Supervisor's pid file; it exists from `workshop up` to `workshop down`."""
        return self.state / PID_FILE

    @property
    def is_up(self) -> bool:
        """Whether the servers were started by `workshop up` and not stopped since."""
        return self.pid_file.exists()

    # -- paths -----------------------------------------------------------------------------------------------
    @property
    def pipeline(self) -> Path:
        """The folder of `dvc.yaml` and `params.yaml`: the current folder if `dvc.yaml` is there, else chapter 4's."""
        return Path.cwd() if Path("dvc.yaml").exists() else self.root / "4_pipeline"

    @property
    def jupyter(self) -> Path:
        """JupyterLab's configuration folder."""
        return self.root / "server" / "jupyter"

    @property
    def logs(self) -> Path:
        """The log folder of the servers."""
        return self.state / "logs"

    @property
    def logging_file(self) -> Path | None:
        """The logging configuration of all servers, such as `server/team/logging.yaml`, if set."""
        return self.logging and (self.root / self.logging).resolve()

    @property
    def transfers_log(self) -> Path:
        """The FTP server's transfer log; the running server keeps it open."""
        return self.logs / "transfers.log"

    @property
    def database(self) -> Path:
        """The tracking server's SQLite database."""
        return self.state / "mlflow.db"

    @property
    def artifacts(self) -> Path:
        """The root folder of the FTP server."""
        return self.state / "artifacts"

    @property
    def certificate(self) -> Path:
        """The certificate of the FTP server, for its clients."""
        return self.state / "tls" / f"{self.host}.pem"

    @property
    def dask_key(self) -> Path:
        """Key and certificate of the Dask cluster and its clients, in one file (mode 0600)."""
        return self.state / "tls" / "dask-key.pem"

    @property
    def credentials_file(self) -> Path:
        """The file with the generated credentials (mode 0600)."""
        return self.state / "credentials.json"

    # -- credentials -----------------------------------------------------------------------------------------
    def credentials(self, *, create: bool = False) -> tuple[str, SecretStr]:
        """Return the FTP user and password from the environment, else from the generated file.

        With ``create``, generate a missing file, with a random password. Raises SettingsError if the file is missing,
        damaged, or readable by others.
        """
        if self.ftp_password is not None:
            return self.ftp_user, self.ftp_password
        file = self.credentials_file
        if create and not file.exists():
            self._generate_credentials()
        try:
            mode = file.stat().st_mode & 0o777
            stored = json.loads(file.read_text())
            user, password = stored["ftp_user"], SecretStr(stored["ftp_password"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise SettingsError(
                "The FTP credentials are missing or damaged.",
                value=f"{file}: {error!r}",
                expected="the file that `workshop up` writes, or WORKSHOP_FTP_USER and WORKSHOP_FTP_PASSWORD",
                next_step=f"type `rm -f {file}`, then `workshop up`",
            ) from None
        if mode & 0o077:
            raise SettingsError(
                f"Other users can read the file {file}.",
                value=oct(mode),
                expected="0o600",
                next_step=f"chmod 600 {file}",
            )
        return user, password

    def _generate_credentials(self) -> None:
        """Write new credentials atomically; the first of two concurrent writers wins."""
        self.state.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.NamedTemporaryFile("w", dir=self.state) as temporary:  # mode 0600
            json.dump({"ftp_user": self.ftp_user, "ftp_password": secrets.token_urlsafe(24)}, temporary)
            temporary.flush()
            with contextlib.suppress(FileExistsError):
                os.link(temporary.name, self.credentials_file)

    def ftp_environment(self) -> dict[str, str]:
        """Return the environment variables for MLflow's login to the FTP server, including the password."""
        user, password = self.credentials(create=True)
        return {
            "MLFLOW_FTP_USERNAME": user,
            "MLFLOW_FTP_PASSWORD": password.get_secret_value(),
            "MLFLOW_FTP_SERVER_CERT_PATH": str(self.certificate),
        }


def get_settings() -> Settings:
    """Read and return the current settings; raise SettingsError for the first invalid variable."""
    try:
        return Settings()
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0]) if first["loc"] else "?"
        variable = name if name.isupper() else f"WORKSHOP_{name.upper()}"
        raise SettingsError(
            f"The setting {variable} is invalid.",
            value=repr(first["input"]),
            expected=first["msg"],
            next_step=f"correct or unset {variable} in the environment, in `.env`, or in the state folder's ports.json",
        ) from None
