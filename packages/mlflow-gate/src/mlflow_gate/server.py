"""The tracking server, asked as MLflow's own client asks: its credentials, TLS, time-outs and retries."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from mlflow_gate import sqlite
from mlflow_gate.errors import ServerError

if TYPE_CHECKING:
    from mlflow import MlflowClient

RETRIES = "MLFLOW_HTTP_REQUEST_MAX_RETRIES"
FIRST_RETRIES = 2  # of the first question, after 0 and 4 s: MLflow's seven are four minutes before a word is said
QUESTION, NOTHING = "/api/2.0/mlflow/registered-models/search", {"max_results": 1, "filter": "name = '-'"}
CREDENTIALS = "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
CERTIFICATE = "MLFLOW_TRACKING_SERVER_CERT_PATH names the certificate that signed the server's"
ABSENT = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE", "NOT_FOUND")
AWAY = ("TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED", "DEADLINE_EXCEEDED")


def connect(uri: str | None = None) -> MlflowClient:
    """Return a client of a tracking server, by default of the one that MLflow is set to; the server is asked once.

    Raises ServerError when the server does not answer, its certificate is not trusted, or it refuses the credentials.
    Records in SQLite need no server: they are made if there are none, and ServerError says why MLflow cannot open them.
    """
    import mlflow
    from mlflow.exceptions import MlflowException
    from mlflow.tracking._tracking_service.utils import _get_store
    from mlflow.utils.rest_utils import http_request

    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")  # one for each few kilobytes
    uri = uri or mlflow.get_tracking_uri()
    if uri.startswith(("http://", "https://")):
        retries = int(os.environ[RETRIES]) if os.environ.get(RETRIES, "").isdigit() else FIRST_RETRIES
        how: dict[str, Any] = {"params": NOTHING, "max_retries": retries, "raise_on_status": False}
        what = f"The MLflow tracking server at {without_password(uri)}"
        host = _get_store(uri).get_host_creds()  # of the store's own, for a plug-in may check the address first
        try:
            answer = http_request(host, QUESTION, "GET", **how)
        except MlflowException as error:
            raise outage(f"{what} does not answer", error) from None
        value = f"HTTP {answer.status_code}: {answer.text:.200}"
        if answer.status_code in (401, 403):
            raise ServerError(f"{what} refuses the credentials.", value=value, expected=f"those in {CREDENTIALS}")
        if answer.status_code >= 400:
            step = "set MLFLOW_TRACKING_URI to the address of an MLflow server; if it is busy, try again"
            raise ServerError(f"{what} does not answer.", value=value, next_step=step)
    try:
        sqlite.make(uri)
        return mlflow.MlflowClient(uri)
    except MlflowException as error:
        what, step = f"The records at {without_password(uri)} cannot be opened.", f"mlflow db upgrade {uri}"
        raise ServerError(what, value=error.message, next_step=step) from None


def outage(what: str, error: BaseException) -> ServerError:
    """Return the error that says that a server is away, or is not trusted."""
    from requests.exceptions import SSLError

    step = "start it, or set MLFLOW_TRACKING_URI; if it is busy, try again"
    for each in chain(error):
        if isinstance(each, SSLError):
            what, step = f"{what}: its TLS certificate is not trusted", CERTIFICATE
    return ServerError(f"{what}.", value=without_password(f"{type(error).__name__}: {error}")[:300], next_step=step)


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and those that it came from."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def is_outage(error: BaseException) -> bool:
    """Return whether an error is of the network or of a server that is away, and so no finding on a model."""
    from requests import ConnectionError as Unreachable
    from requests import Timeout

    return any(
        isinstance(each, ConnectionError | TimeoutError | ServerError | Unreachable | Timeout)
        or type(each).__module__ == "urllib3.exceptions"
        or getattr(each, "error_code", None) in AWAY
        or (getattr(getattr(each, "response", None), "status_code", None) or 0) >= 500
        for each in chain(error)
    )


def is_absent(error: BaseException) -> bool:
    """Return whether an error says that a thing does not exist: a run, a version, an alias, a file."""
    return any(
        isinstance(each, FileNotFoundError)
        or getattr(each, "error_code", None) in ABSENT
        or "404 Client Error" in str(each)  # of a download, among other words of MLflow
        for each in chain(error)
    )


def find(ask: Callable[..., Any], *names: str) -> Any:
    """Return what MLflow's client answers for names, None when it does not exist, or raise ServerError."""
    try:
        return ask(*names)
    except Exception as error:
        if is_outage(error):
            raise outage("The MLflow tracking server does not answer", error) from error
        # A proxy's page that says 404 is no answer of MLflow.
        if not is_absent(error) or str(error).startswith("API request to endpoint"):
            raise
        return None


def page(client: MlflowClient, path: str) -> str:
    """Return the address of a page in MLflow's UI; empty for a store without a server."""
    uri = without_password(client.tracking_uri)
    return f"{uri.rstrip('/')}/#/{path}" if uri.startswith(("http://", "https://")) else ""


def without_password(text: str) -> str:
    """Return a text with its addresses without user and password."""
    return re.sub(r"//[^/\s]*@", "//", text)
