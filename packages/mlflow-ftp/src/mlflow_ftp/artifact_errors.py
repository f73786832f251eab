"""Exceptions of the store; each is an MlflowException, so that MLflow's server responds with its status and message."""

from __future__ import annotations

import ftplib
import re
import ssl

from mlflow.exceptions import MlflowException
from mlflow.protos import databricks_pb2 as codes

NETWORK_ERRORS = (ftplib.Error, EOFError, ConnectionError, TimeoutError, ssl.SSLError)
NO_ROOM = re.compile("[45]52|(426|451).*(space|quota)|55.*(No space left|[Qq]uota exceeded)")
# Client-limit messages of ProFTPD, vsftpd, pure-ftpd, IIS and wu-ftpd, e.g. "the maximum number of clients (3)".
FULL = re.compile(r"\b(max\w*|too many|limit|already (connected|logged))\b", re.IGNORECASE)


class ArtifactError(MlflowException):
    """An artifact could not be stored, listed, downloaded or deleted.

    The message states the failure, the value found, the expected value and the next step.
    """

    code = codes.RESOURCE_CONFLICT  # status 409: MLflow's clients would retry a 500 for minutes

    def __init__(self, what: str, *, value: object = None, expected: str = "", next_step: str = "") -> None:
        details = {"found:   ": value, "expected:": expected, "next:    ": next_step}
        lines = [f"  {title} {detail}" for title, detail in details.items() if detail not in (None, "")]
        super().__init__("\n".join([what, *lines]), error_code=self.code)


class StoreUnavailable(ArtifactError):
    """The FTP server is down, or temporarily unable to execute a command."""

    code = codes.TEMPORARILY_UNAVAILABLE


class StoreSilent(ArtifactError):
    """The FTP server did not respond in time; the command is not retried, because that would double the wait."""

    code = codes.TEMPORARILY_UNAVAILABLE


class StoreFull(ArtifactError):
    """The FTP server has been at its client limit, per user or in total, for a minute."""

    code = codes.TEMPORARILY_UNAVAILABLE


class StoreRefused(ArtifactError):
    """The FTP server refused a command."""


class ArtifactMissing(ArtifactError):
    """The artifact does not exist."""

    code = codes.RESOURCE_DOES_NOT_EXIST


class ArtifactDamaged(ArtifactError):
    """The content of an artifact differs from what was stored."""


class ArtifactNameRefused(ArtifactError):
    """The artifact's URI or name is invalid."""

    code = codes.INVALID_PARAMETER_VALUE


def explain(error: BaseException, server: str, *, is_logged_in: bool = False) -> ArtifactError:
    """Convert a network error from ``server`` into an ArtifactError with a next step."""
    code = str(error)[:3] if isinstance(error, ftplib.Error) else ""
    kind: type[ArtifactError] = StoreUnavailable
    what, next_step = "does not respond.", "check that the server is running"
    if isinstance(error, ssl.SSLError) and not isinstance(error, ssl.SSLEOFError):
        kind, what = ArtifactError, "cannot be trusted, because its certificate could not be verified."
        next_step = (
            "set MLFLOW_FTP_SERVER_CERT_PATH to the file with the server's certificate or its certificate authority's"
        )
    elif isinstance(error, ftplib.Error) and NO_ROOM.match(str(error)):
        kind, what = ArtifactError, "has no space left; the artifact was not stored."
        next_step = "free space on the server's disk, or delete runs and run `mlflow gc`"
    elif not is_logged_in and (code == "421" or (code == "530" and FULL.search(str(error)))):
        kind, what = StoreFull, "has reached its client limit."
        next_step = "allow more connections per user and per host on the server, or wait for other clients to finish"
    elif code == "530" and is_logged_in:
        what, next_step = "has ended the session.", "retry the operation"
    elif code == "530":
        kind, what, next_step = ArtifactError, "rejected the login.", "check the user name and the password"
    elif isinstance(error, ftplib.error_perm):
        kind, what, next_step = StoreRefused, "rejected a command.", "look for the reason in the server's log"
    elif isinstance(error, TimeoutError):
        kind = StoreSilent
    elif isinstance(error, ftplib.error_temp):
        what = "is temporarily unable to execute a command."
    return kind(f"{server} {what}", value=f"{type(error).__name__}: {error}", next_step=next_step)
