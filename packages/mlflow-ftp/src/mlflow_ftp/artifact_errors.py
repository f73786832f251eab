"""The errors of the store; each is an error of MLflow too, whose server answers with its status and text."""

from __future__ import annotations

import ftplib
import re
import ssl

from mlflow.exceptions import MlflowException
from mlflow.protos import databricks_pb2 as codes

NETWORK_ERRORS = (ftplib.Error, EOFError, ConnectionError, TimeoutError, ssl.SSLError)
NO_ROOM = re.compile("[45]52|(426|451).*(space|quota)|55.*(No space left|[Qq]uota exceeded)")
# In the words of ProFTPD, vsftpd, pure-ftpd, IIS and wu-ftpd: "the maximum number of clients (3) for this user".
FULL = re.compile(r"\b(max\w*|too many|limit|already (connected|logged))\b", re.IGNORECASE)


class ArtifactError(MlflowException):
    """An artifact could not be stored, listed, fetched or deleted.

    The text names the failure, the value, the expected value, and the next step.
    """

    code = codes.RESOURCE_CONFLICT  # status 409: MLflow's clients repeat what gets a 500, for minutes

    def __init__(self, what: str, *, value: object = None, expected: str = "", next_step: str = "") -> None:
        details = {"found:   ": value, "expected:": expected, "next:    ": next_step}
        lines = [f"  {title} {detail}" for title, detail in details.items() if detail not in (None, "")]
        super().__init__("\n".join([what, *lines]), error_code=self.code)


class StoreUnavailable(ArtifactError):
    """The FTP server cannot be reached, or cannot do this now."""

    code = codes.TEMPORARILY_UNAVAILABLE


class StoreSilent(ArtifactError):
    """The FTP server did not answer in time; another attempt would double the wait."""

    code = codes.TEMPORARILY_UNAVAILABLE


class StoreFull(ArtifactError):
    """The FTP server has had as many clients as it lets in, of one user or of all, for a minute."""

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


def explain(error: BaseException, server: str, *, is_logged_in: bool = False) -> ArtifactError:
    """Return an error that explains a network error of ``server`` to a user."""
    code = str(error)[:3] if isinstance(error, ftplib.Error) else ""
    kind: type[ArtifactError] = StoreUnavailable
    what, next_step = "does not answer.", "check that the server runs"
    if isinstance(error, ssl.SSLError) and not isinstance(error, ssl.SSLEOFError):
        kind, what = ArtifactError, "cannot be trusted."
        next_step = "set MLFLOW_FTP_SERVER_CERT_PATH to the file of its certificate, or of its authority's"
    elif isinstance(error, ftplib.Error) and NO_ROOM.match(str(error)):
        kind, what = ArtifactError, "has no room left; nothing of the artifact was kept."
        next_step = "free space on the server's disk, or delete runs and type `mlflow gc`"
    elif not is_logged_in and (code == "421" or (code == "530" and FULL.search(str(error)))):
        kind, what = StoreFull, "lets no more clients in."
        next_step = "have it allow more connections (of a user, and of a host), or wait until others have ended"
    elif code == "530" and is_logged_in:
        what, next_step = "has ended the session.", "try again"
    elif code == "530":
        kind, what, next_step = ArtifactError, "refused the login.", "compare user and password with the server's"
    elif isinstance(error, ftplib.error_perm):
        kind, what, next_step = StoreRefused, "refused a command.", "look into the server's log"
    elif isinstance(error, TimeoutError):
        kind = StoreSilent
    elif isinstance(error, ftplib.error_temp):
        what = "cannot do this now."
    return kind(f"{server} {what}", value=f"{type(error).__name__}: {error}", next_step=next_step)
