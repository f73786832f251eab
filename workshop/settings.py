"""Where things are: host, ports, addresses, credentials and paths; the only reader of the environment and `.env`."""

from __future__ import annotations

import ipaddress
import json
import os
import secrets
from pathlib import Path

from platformdirs import user_cache_path
from pydantic import Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, JsonConfigSettingsSource, SettingsConfigDict

from workshop.errors import SettingsError

EXPERIMENT = "predicting_wind_solar"
REGISTERED_MODEL = "wind_solar"
PRODUCTION = "production"
EXPORT = 'eval "$(.venv/bin/workshop config --export)"'  # points a shell at the servers, whatever it points at now
# After 0, 4, 12 and 28 s: outlasts a restart of the server (10 to 20 s). MLflow's own 7 tries are four minutes.
MLFLOW_RETRIES = "4"
LOOPBACK = ("127.0.0.1", "localhost", "::1")
STATE_VERSION = 1  # of the state folder's layout; one more needs a step in `workshop.servers.state.MIGRATIONS`


def find_root(start: Path | None = None) -> Path:
    """Return the repository's folder: `WORKSHOP_ROOT`, else the first parent of ``start`` that looks like it.

    The current folder goes first, so that commands typed in a second clone act on that clone, whichever clone
    the package was installed from.
    """
    if root := os.environ.get("WORKSHOP_ROOT"):
        return Path(root).resolve()
    start = (start or Path.cwd()).resolve()
    for folder in (start, *start.parents):
        if (folder / "4_pipeline").is_dir() and (folder / "pyproject.toml").is_file():
            return folder
    return Path(__file__).resolve().parent.parent


class Settings(BaseSettings):
    """Every address and path, from (first wins) what `workshop up` took, the environment, `.env`, the defaults.

    Each field is set by ``WORKSHOP_<FIELD>``; the tracking and scheduler addresses also by the variables that
    MLflow and Dask themselves read.
    """

    model_config = SettingsConfigDict(env_prefix="WORKSHOP_", extra="ignore")

    root: Path = Field(default_factory=find_root)
    state: Path = Path("server/state")
    downloads: Path = Field(default_factory=lambda: user_cache_path("workshop"))
    offline: Path | None = None
    host: str = "127.0.0.1"
    ftp_port: int = Field(2121, ge=1, le=65535)
    ftp_passive_first: int = Field(60100, ge=1024, le=65535)
    ftp_passive_count: int = Field(40, ge=1, le=1000)
    ftp_user: str = "workshop"
    ftp_password: SecretStr | None = None
    ftp_tls: bool | None = None
    mlflow_port: int = Field(5000, ge=1, le=65535)
    database_uri: SecretStr | None = None
    dask_port: int = Field(8786, ge=1, le=65535)
    dask_dashboard_port: int = Field(8787, ge=1, le=65535)
    dask_workers: int = Field(default_factory=lambda: os.cpu_count() or 1, ge=1)
    dashboard_port: int = Field(8050, ge=1, le=65535)
    mlflow_tracking_uri: str | None = Field(None, validation_alias="MLFLOW_TRACKING_URI")
    dask_scheduler_address: str | None = Field(None, validation_alias="DASK_SCHEDULER_ADDRESS")
    exported: str = ""  # what `exports` gave: its own addresses and, last, the state folder

    @classmethod
    def settings_customise_sources(cls, settings_cls, init_settings, env_settings, dotenv_settings, **_):
        """Put the ports of running servers first (a wish must not hide where they are), those of stopped ones last."""
        root = find_root()
        dotenv = type(dotenv_settings)(settings_cls, env_file=root / ".env")
        state = Path(os.environ.get("WORKSHOP_STATE") or dotenv.env_vars.get("workshop_state") or "server/state")
        chosen = JsonConfigSettingsSource(settings_cls, json_file=root / state / "ports.json")
        kept = JsonConfigSettingsSource(settings_cls, json_file=root / state / "kept_ports.json")
        return init_settings, chosen, env_settings, dotenv, kept

    def model_post_init(self, _context) -> None:
        """Make the state folder absolute; it is given relative to the root."""
        self.state = (self.root / self.state).resolve()

    # -- addresses -------------------------------------------------------------------------------------------
    @property
    def tracking_uri(self) -> str:
        """The address of the MLflow tracking server: what the user set by hand, else that of our own."""
        return self.given_tracking_uri or f"http://{self.host}:{self.mlflow_port}"

    @property
    def scheduler_address(self) -> str:
        """The address of the Dask scheduler: what the user set by hand, else that of our own."""
        return self.given_scheduler_address or f"tcp://{self.host}:{self.dask_port}"

    @property
    def given_tracking_uri(self) -> str | None:
        """MLFLOW_TRACKING_URI, unless it is what `exports` gave: our own server may have moved since."""
        return None if self._is_exported(self.mlflow_tracking_uri) else self.mlflow_tracking_uri

    @property
    def given_scheduler_address(self) -> str | None:
        """DASK_SCHEDULER_ADDRESS, likewise."""
        return None if self._is_exported(self.dask_scheduler_address) else self.dask_scheduler_address

    def _is_exported(self, address: str | None) -> bool:
        *addresses, state = self.exported.split(" ", 2)
        return state == str(self.state) and address in addresses

    @property
    def dask_dashboard_url(self) -> str:
        """The page of the Dask scheduler."""
        return f"http://{self.host}:{self.dask_dashboard_port}/status"

    @property
    def dashboard_url(self) -> str:
        """The page that clients open."""
        return f"http://{self.host}:{self.dashboard_port}"

    @property
    def artifacts_uri(self) -> str:
        """Where the tracking server keeps artifacts; never with a user or a password in it."""
        return f"{self.ftp_uri}/mlflow"

    @property
    def ftp_uri(self) -> str:
        """The address of the FTP server."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'ftps' if self.ftp_requires_tls else 'ftp'}://{host}:{self.ftp_port}"

    @property
    def ftp_requires_tls(self) -> bool:
        """Whether the FTP server refuses connections without TLS: by default, when others than this machine see it."""
        return not is_loopback(self.host) if self.ftp_tls is None else self.ftp_tls

    @property
    def ftp_passive_ports(self) -> range:
        """The ports on which the FTP server accepts data connections."""
        return range(self.ftp_passive_first, self.ftp_passive_first + self.ftp_passive_count)

    @property
    def ports_file(self) -> Path:
        """The ports that `workshop up` took; there from `up` to `down`."""
        return self.state / "ports.json"

    @property
    def kept_ports_file(self) -> Path:
        """The same after `down`: the next `up` takes those that are free."""
        return self.state / "kept_ports.json"

    @property
    def is_up(self) -> bool:
        """Whether `workshop up` started servers here that nobody has taken down."""
        return self.ports_file.exists()

    # -- paths -----------------------------------------------------------------------------------------------
    @property
    def pipeline(self) -> Path:
        """The folder of `dvc.yaml` and `params.yaml`."""
        return self.root / "4_pipeline"

    @property
    def jupyter(self) -> Path:
        """The folder of JupyterLab's configuration."""
        return self.root / "server" / "jupyter"

    @property
    def logs(self) -> Path:
        """The folder of the servers' logs."""
        return self.state / "logs"

    @property
    def transfers_log(self) -> Path:
        """The FTP server's log of transfers, which it keeps open while it runs."""
        return self.logs / "transfers.log"

    @property
    def database(self) -> Path:
        """The tracking server's SQLite file."""
        return self.state / "mlflow.db"

    @property
    def artifacts(self) -> Path:
        """The folder that the FTP server serves."""
        return self.state / "artifacts"

    @property
    def version_file(self) -> Path:
        """The version of the state folder's layout."""
        return self.state / "version"

    @property
    def certificates(self) -> Path:
        """The folder of the servers' keys and certificates."""
        return self.state / "tls"

    @property
    def certificate(self) -> Path:
        """The certificate of the FTP server, for its clients."""
        return self.certificates / f"{self.host}.pem"

    @property
    def credentials_file(self) -> Path:
        """The generated credentials, mode 0600."""
        return self.state / "credentials.json"

    # -- credentials -----------------------------------------------------------------------------------------
    def credentials(self, *, create: bool = False) -> tuple[str, SecretStr]:
        """Return the FTP user and password: from the environment, else from the generated file.

        With ``create`` a missing file is made first, with a random password. Raises SettingsError when there
        is none, or when others may read it.
        """
        if self.ftp_password is not None:
            return self.ftp_user, self.ftp_password
        if create and not self.credentials_file.exists():
            self._generate_credentials()
        try:
            mode = self.credentials_file.stat().st_mode & 0o777
            if mode & 0o077:
                raise SettingsError(
                    f"The file {self.credentials_file} can be read by others.",
                    value=oct(mode),
                    expected="0o600",
                    next_step=f"chmod 600 {self.credentials_file}",
                )
            stored = json.loads(self.credentials_file.read_text())
            return stored["ftp_user"], SecretStr(stored["ftp_password"])
        except FileNotFoundError:
            raise SettingsError(
                "There are no FTP credentials yet.",
                value=f"no file {self.credentials_file}",
                expected="a file written by `workshop up`, or WORKSHOP_FTP_USER and WORKSHOP_FTP_PASSWORD",
                next_step="workshop up",
            ) from None
        except (ValueError, KeyError, TypeError):
            raise SettingsError(
                f"The file {self.credentials_file} is damaged.",
                expected="JSON with ftp_user and ftp_password",
                next_step=f"remove it and type `workshop up`: rm {self.credentials_file}",
            ) from None

    def _generate_credentials(self) -> None:
        """Write new credentials whole or not at all; the first of two concurrent writers wins."""
        self.state.mkdir(parents=True, exist_ok=True, mode=0o700)
        temporary = self.credentials_file.with_name(f".credentials.{os.getpid()}.{secrets.token_hex(4)}")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            json.dump({"ftp_user": self.ftp_user, "ftp_password": secrets.token_urlsafe(24)}, file)
        try:
            os.link(temporary, self.credentials_file)
        except FileExistsError:
            pass
        finally:
            temporary.unlink()

    def ftp_environment(self) -> dict[str, str]:
        """Return the variables by which MLflow's server reaches the FTP server; the password is among them."""
        user, password = self.credentials(create=True)
        return {
            "MLFLOW_FTP_USERNAME": user,
            "MLFLOW_FTP_PASSWORD": password.get_secret_value(),
            "MLFLOW_FTP_SERVER_CERT_PATH": str(self.certificate),
        }

    def exports(self) -> dict[str, str]:
        """Return the environment variables that point other programs at the servers; no secret among them.

        Servers that run here win over what the shell already holds, so that exporting anew mends a stale shell.
        """
        here = self.model_copy(update={"mlflow_tracking_uri": None, "dask_scheduler_address": None})
        chosen = here if self.is_up else self
        own = ["-" if chosen.given_tracking_uri else here.tracking_uri]
        own.append("-" if chosen.given_scheduler_address else here.scheduler_address)
        return (
            self._package_source()
            | loopback_without_proxy()
            | {
                "WORKSHOP_EXPORTED": " ".join([*own, str(self.state)]),
                "MLFLOW_TRACKING_URI": chosen.tracking_uri,
                "MLFLOW_EXPERIMENT_NAME": EXPERIMENT,
                "MLFLOW_HTTP_REQUEST_MAX_RETRIES": MLFLOW_RETRIES,
                "MLFLOW_DISABLE_TELEMETRY": "true",
                "DASK_SCHEDULER_ADDRESS": chosen.scheduler_address,
                "WORKSHOP_DASHBOARD_URL": self.dashboard_url,
                "WORKSHOP_FTP_URI": self.artifacts_uri,
            }
        )

    def _package_source(self) -> dict[str, str]:
        """Return the variables by which `mlflow run` makes environments where packages do not come from a network."""
        if self.offline is None:
            return {}
        wheels = (self.root / self.offline / "wheels").as_uri()  # as an address, for a blank would end a path
        return {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": wheels, "UV_OFFLINE": "1", "UV_FIND_LINKS": wheels}


def loopback_without_proxy() -> dict[str, str]:
    """Return the variables by which requests to this machine pass by the proxy that `http_proxy` names."""
    hosts = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    if hosts != "*":
        hosts = ",".join(dict.fromkeys([*filter(None, hosts.split(",")), *LOOPBACK]))
    return {"no_proxy": hosts, "NO_PROXY": hosts}


def is_loopback(host: str) -> bool:
    """Tell whether only programs of this machine reach a server at this host name or address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def get_settings() -> Settings:
    """Return the settings as they are now; raise SettingsError naming the variable that cannot be used."""
    try:
        return Settings()
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0]) if first["loc"] else "?"
        variable = name if name.isupper() else f"WORKSHOP_{name.upper()}"
        raise SettingsError(
            f"The setting {variable} cannot be used.",
            value=repr(first["input"]),
            expected=first["msg"],
            next_step=f"set or unset {variable} in the environment, in `.env`, or in the state folder's ports.json",
        ) from None
    except ValueError as error:
        raise SettingsError(
            f"The settings cannot be read: {error}", next_step="workshop down, then workshop up"
        ) from None
