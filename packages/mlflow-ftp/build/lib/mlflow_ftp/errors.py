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

NETWORK_ERRORS = (ftplib.Error, EOFError, ConnectionError, TimeoutError, ssl.SSLError)


class ArtifactError(MlflowException):
    """An artifact could not be stored, listed, fetched or deleted.

    The text says what failed, what was found, what was expected, and what to do next.
    """

    code = RESOURCE_CONFLICT  # status 409: MLflow's clients repeat what gets a 500, for minutes

    def __init__(
        self, what: str, *, found: object = None, expected: str | None = None, next_step: str | None = None
    ) -> None:
        details = {"found:   ": found, "expected:": expected, "next:    ": next_step}
        lines = [f"  {title} {detail}" for title, detail in details.items() if detail is not None]
        super().__init__("\n".join([what, *lines]), error_code=self.code)


class StoreUnavailable(ArtifactError):
    """The FTP server does not answer; ``silent`` if it said nothing until the time was over."""

    code = TEMPORARILY_UNAVAILABLE
    silent = False


class StoreRefused(ArtifactError):
    """The FTP server refused a command."""


class ArtifactMissing(ArtifactError):
    """There is no such artifact."""

    code = RESOURCE_DOES_NOT_EXIST


class ArtifactDamaged(ArtifactError):
    """What arrived is not what was stored."""


class ArtifactNameRefused(ArtifactError):
    """An address or a name that the store cannot use."""

    code = INVALID_PARAMETER_VALUE


def explain(error: BaseException, server: str) -> ArtifactError:
    """Return the error that tells the user what a network error of ``server`` means."""
    found = f"{type(error).__name__}: {error}"
    if isinstance(error, ssl.SSLError) and not isinstance(error, ssl.SSLEOFError):
        return ArtifactError(
            f"{server} cannot be trusted.",
            found=found,
            next_step="set MLFLOW_FTP_SERVER_CERT_PATH to the file of its certificate, or of its authority's",
        )
    if isinstance(error, ftplib.Error) and re.match("[45]52|(426|451).*(space|quota)", str(error)):
        return ArtifactError(
            f"{server} has no room left; nothing of the artifact was kept.",
            found=found,
            next_step="free space on the server's disk, or delete runs and type `mlflow gc`",
        )
    if isinstance(error, ftplib.error_perm):
        if reply_code(error) == "530":
            return ArtifactError(
                f"{server} refused the login.", found=found, next_step="compare user and password with the server's"
            )
        return StoreRefused(f"{server} refused a command.", found=found, next_step="look into the server's log")
    what = "cannot do this now" if isinstance(error, ftplib.error_temp) else "does not answer"
    unavailable = StoreUnavailable(f"{server} {what}.", found=found, next_step="look whether the server runs")
    unavailable.silent = isinstance(error, TimeoutError)
    return unavailable


def reply_code(error: BaseException) -> str:
    """Return the three digits with which an FTP server's reply begins."""
    return str(error)[:3]
