"""Access to the tracking server with the credentials, TLS settings, timeouts and retries of MLflow's client."""

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
PROBE_RETRIES = 2  # after 0 and 4 s; MLflow's default of 7 retries would delay an error by four minutes
PROBE_PATH, PROBE_PARAMS = "/api/2.0/mlflow/registered-models/search", {"max_results": 1, "filter": "name = '-'"}
CREDENTIALS = "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
CERTIFICATE = "set MLFLOW_TRACKING_SERVER_CERT_PATH to the certificate that signed the server's certificate"
NOT_FOUND_CODES = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE", "NOT_FOUND")
UNAVAILABLE_CODES = ("TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED", "DEADLINE_EXCEEDED")


def connect(uri: str | None = None) -> MlflowClient:
    """Return a client of a tracking server, after one test request.

    A SQLite store needs no server, and is created if it does not exist.

    Parameters
    ----------
    uri : str, optional
        The tracking URI (default: `mlflow.get_tracking_uri()`).

    Raises
    ------
    ServerError
        If the server does not respond, its certificate is not trusted, it rejects the credentials, or MLflow cannot
        open the SQLite store.
    """
    import mlflow
    from mlflow.exceptions import MlflowException
    from mlflow.tracking._tracking_service.utils import _get_store
    from mlflow.utils.rest_utils import http_request

    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")  # otherwise even small files show a bar
    uri = uri or mlflow.get_tracking_uri()
    if uri.startswith(("http://", "https://")):
        retries = int(os.environ[RETRIES]) if os.environ.get(RETRIES, "").isdigit() else PROBE_RETRIES
        options: dict[str, Any] = {"params": PROBE_PARAMS, "max_retries": retries, "raise_on_status": False}
        what = f"The MLflow tracking server at {without_password(uri)}"
        host = _get_store(uri).get_host_creds()  # from the store: a store plug-in may verify the server
        try:
            response = http_request(host, PROBE_PATH, "GET", **options)
        except MlflowException as error:
            raise outage(f"{what} does not respond", error) from None
        value = f"HTTP {response.status_code}: {response.text:.200}"
        if response.status_code in (401, 403):
            raise ServerError(f"{what} rejects the credentials.", value=value, expected=f"valid {CREDENTIALS}")
        if response.status_code >= 400:
            step = "set MLFLOW_TRACKING_URI to the URL of an MLflow server; if the server is busy, try again later"
            raise ServerError(f"{what} does not respond.", value=value, next_step=step)
    try:
        sqlite.make(uri)
        return mlflow.MlflowClient(uri)
    except MlflowException as error:
        what, step = f"The tracking store {without_password(uri)} cannot be opened.", f"mlflow db upgrade {uri}"
        raise ServerError(what, value=error.message, next_step=step) from None


def outage(what: str, error: BaseException) -> ServerError:
    """Return the ServerError for a server that is down or whose certificate is not trusted."""
    from requests.exceptions import SSLError

    step = "start the server, or set MLFLOW_TRACKING_URI; if the server is busy, try again later"
    for each in causes(error):
        if isinstance(each, SSLError):
            what, step = f"{what}: its TLS certificate is not trusted", CERTIFICATE
    return ServerError(f"{what}.", value=without_password(f"{type(error).__name__}: {error}")[:300], next_step=step)


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and its causes."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def is_outage(error: BaseException) -> bool:
    """Return whether an error is due to the network or the server, not to a model."""
    from requests import ConnectionError as Unreachable
    from requests import Timeout

    return any(
        isinstance(each, ConnectionError | TimeoutError | ServerError | Unreachable | Timeout)
        or type(each).__module__ == "urllib3.exceptions"
        or getattr(each, "error_code", None) in UNAVAILABLE_CODES
        or (getattr(getattr(each, "response", None), "status_code", None) or 0) >= 500
        for each in causes(error)
    )


def is_not_found(error: BaseException) -> bool:
    """Return whether an error means that a run, version, alias or file does not exist."""
    return any(
        isinstance(each, FileNotFoundError)
        or getattr(each, "error_code", None) in NOT_FOUND_CODES
        or "404 Client Error" in str(each)  # a failed download: MLflow keeps only the HTTP error's text
        for each in causes(error)
    )


def find(getter: Callable[..., Any], *names: str) -> Any:
    """Call a getter of MLflow's client; return None if the entity does not exist, raise ServerError on an outage."""
    try:
        return getter(*names)
    except Exception as error:
        if is_outage(error):
            raise outage("The MLflow tracking server does not respond", error) from error
        # A proxy's 404 page does not mean that the entity is missing.
        if not is_not_found(error) or str(error).startswith("API request to endpoint"):
            raise
        return None


def page(client: MlflowClient, path: str) -> str:
    """Return the URL of a page in MLflow's UI; empty for a store without a server."""
    uri = without_password(client.tracking_uri)
    return f"{uri.rstrip('/')}/#/{path}" if uri.startswith(("http://", "https://")) else ""


def without_password(text: str) -> str:
    """Return ``text`` without the user names and passwords in its URLs."""
    return re.sub(r"//[^/\s]*@", "//", text)
