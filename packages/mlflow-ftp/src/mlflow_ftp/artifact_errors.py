"""The errors of the store; each is an error of MLflow too, whose server answers with its status and text."""

from __future__ import annotations

import ftplib
import re
import ssl

from mlflow.exceptions import MlflowException
from mlflow.protos import databricks_pb2 as codes

NETWORK_ERRORS = (ftplib.Error, EOFError, ConnectionError, TimeoutError, ssl.SSLError)


class ArtifactError(MlflowException):
    """An artifact could not be stored, listed, fetched or deleted.

    The text names the failure, the value, the expected value, and the next step.
    """

    code = codes.RESOURCE_CONFLICT  # status 409: MLflow's clients repeat what gets a 500, for minutes

    def __init__(
        self, what: str, *, value: object = None, expected: str | None = None, next_step: str | None = None
    ) -> None:
        details = {"value:   ": value, "expected:": expected, "next:    ": next_step}
        lines = [f"  {title} {detail}" for title, detail in details.items() if detail is not None]
        super().__init__("\n".join([what, *lines]), error_code=self.code)


class StoreUnavailable(ArtifactError):
    """The FTP server cannot be reached, or cannot do this now."""

    code = codes.TEMPORARILY_UNAVAILABLE


class StoreSilent(ArtifactError):
    """The FTP server did not answer in time; another attempt would double the wait."""

    code = codes.TEMPORARILY_UNAVAILABLE


class StoreRefused(ArtifactError):
    """The FTP server refused a command."""


class ArtifactMissing(ArtifactError):
    """There is no such artifact."""

    code = codes.RESOURCE_DOES_NOT_EXIST


class ArtifactDamaged(ArtifactError):
    """The bytes of an artifact are not the stored ones."""


class ArtifactNameRefused(ArtifactError):
    """The store cannot use an address or a name."""

    code = codes.INVALID_PARAMETER_VALUE


def explain(error: BaseException, server: str) -> ArtifactError:
    """Return an error that explains a network error of ``server`` to a user."""
    kind: type[ArtifactError] = StoreUnavailable
    what, next_step = "does not answer.", "check that the server runs"
    if isinstance(error, ssl.SSLError) and not isinstance(error, ssl.SSLEOFError):
        kind, what = ArtifactError, "cannot be trusted."
        next_step = "set MLFLOW_FTP_SERVER_CERT_PATH to the file of its certificate, or of its authority's"
    elif isinstance(error, ftplib.Error) and re.match("[45]52|(426|451).*(space|quota)", str(error)):
        kind, what = ArtifactError, "has no room left; nothing of the artifact was kept."
        next_step = "free space on the server's disk, or delete runs and type `mlflow gc`"
    elif isinstance(error, ftplib.error_perm) and str(error)[:3] == "530":
        kind, what, next_step = ArtifactError, "refused the login.", "compare user and password with the server's"
    elif isinstance(error, ftplib.error_perm):
        kind, what, next_step = StoreRefused, "refused a command.", "look into the server's log"
    elif isinstance(error, TimeoutError):
        kind = StoreSilent
    elif isinstance(error, ftplib.error_temp):
        what = "cannot do this now."
    return kind(f"{server} {what}", value=f"{type(error).__name__}: {error}", next_step=next_step)
