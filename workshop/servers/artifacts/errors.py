"""What can go wrong with the store; each error is MLflow's too, whose server then answers with a status and words."""

from __future__ import annotations

import ftplib
import re
import ssl

from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import (
    INVALID_PARAMETER_VALUE,
    RESOURCE_CONFLICT,
    RESOURCE_DOES_NOT_EXIST,
    TEMPORARILY_UNAVAILABLE,
)

from workshop.errors import ArtifactError

NETWORK_ERRORS = (ftplib.Error, EOFError, ConnectionError, TimeoutError, ssl.SSLError)


class StoreError(ArtifactError, MlflowException):
    """An ArtifactError that is MLflow's too."""

    code = RESOURCE_CONFLICT  # status 409: MLflow's clients repeat what gets a 500, for minutes

    def __init__(self, what: str, **details: object) -> None:
        super().__init__(what, **details)
        MlflowException.__init__(self, str(self), error_code=self.code)


class StoreUnavailable(StoreError):
    """The FTP server does not answer, or stopped answering; ``silent`` if it said nothing until the time was over."""

    code = TEMPORARILY_UNAVAILABLE
    silent = False


class StoreRefused(StoreError):
    """The FTP server refused a command."""


class ArtifactMissing(StoreError):
    """There is no such artifact."""

    code = RESOURCE_DOES_NOT_EXIST


class ArtifactDamaged(StoreError):
    """What arrived is not what was stored."""


class ArtifactNameRefused(StoreError):
    """An address or a name that the store cannot use."""

    code = INVALID_PARAMETER_VALUE


def explain(error: BaseException, server: str) -> StoreError:
    """Return the error that tells the user what a network error of ``server`` means."""
    value = f"{type(error).__name__}: {error}"
    if isinstance(error, ssl.SSLError) and not isinstance(error, TimeoutError | ssl.SSLEOFError):
        return StoreError(
            f"{server} cannot be trusted.",
            value=value,
            next_step="set SSL_CERT_FILE to the file of the authority that signed its certificate",
        )
    if isinstance(error, ftplib.Error) and re.match("[45]52|(426|451).*(space|quota)", str(error)):
        return StoreError(
            f"{server} has no room left; nothing of the artifact was kept.",
            value=value,
            next_step="free space on the server's disk, or delete runs and type `mlflow gc`",
        )
    if not isinstance(error, ftplib.error_perm):
        what = "cannot do this now" if isinstance(error, ftplib.error_temp) else "does not answer"
        unavailable = StoreUnavailable(f"{server} {what}.", value=value, next_step="workshop status")
        unavailable.silent = isinstance(error, TimeoutError)
        return unavailable
    if reply_code(error) == "530":
        return StoreError(
            f"{server} refused the login.",
            value=value,
            expected="the user and password that the server was started with",
            next_step="workshop down, then workshop up: both sides then read the same credentials",
        )
    return StoreRefused(f"{server} refused a command.", value=value, next_step="look into the server's log")


def reply_code(error: BaseException) -> str:
    """Return the three digits with which an FTP server's reply begins."""
    return str(error)[:3]
