"""Large files over HTTP into a cache: resumed, tried again, verified, and under their name only when whole."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit, urlunsplit

from workshop.errors import DataError

if TYPE_CHECKING:
    import requests

TRIES = 5
WAIT_SECONDS = 1.0
LONGEST_WAIT_SECONDS = 30.0
SILENCE_SECONDS = 60.0
PASSING = {408, 425, 429, 500, 502, 503, 504}

log = logging.getLogger(__name__)


def download(
    url: str,
    cache: Path,
    sha256: str | None = None,
    *,
    progress: bool = False,
    tries: int = TRIES,
    wait_seconds: float = WAIT_SECONDS,
    silence_seconds: float = SILENCE_SECONDS,
) -> Path:
    """Return the path in ``cache`` of what stands at ``url``, fetched unless it is there with the right checksum.

    pooch keeps the cache. What it lacks is added here: a download that was cut goes on where it ended, also in the
    next process, from a file `.NAME.part`; faults that pass (no connection, silence, a cut line, the statuses in
    `PASSING`) are tried ``tries`` times with growing pauses that begin at ``wait_seconds``. Proxies are those of the
    environment (`https_proxy`, `no_proxy`, ...). Two processes that want the same file wait for each other.

    Raises DataError with the address (never its password), the fault and the next step: no connection, an HTTP error,
    other content, disk full, cache not writable.
    """
    import pooch
    import requests
    from filelock import FileLock

    pooch.get_logger().setLevel("WARNING")
    cache, name = Path(cache), file_name(url)
    part = cache / f".{name}.part"
    shown = without_password(url)
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with FileLock(cache / f".{name}.lock"):
            for again in (True, False):
                resumed = part.exists()
                try:
                    return Path(
                        pooch.retrieve(
                            url,
                            known_hash=sha256 and f"sha256:{sha256}",
                            fname=name,
                            path=cache,
                            downloader=_Resuming(part, progress, tries, wait_seconds, silence_seconds),
                        )
                    )
                except ValueError as error:
                    if isinstance(error, requests.RequestException):
                        raise
                    # The start may be of an older file; pooch has removed it, and a second time begins from nothing.
                    if not (resumed and again):
                        raise _other_content(shown, sha256, error) from None
    except requests.HTTPError as error:
        raise _refused(shown, error.response) from None
    except requests.RequestException as error:
        raise DataError(
            f"{shown} could not be fetched, after {tries} tries.",
            value=f"{type(error).__name__}: {_cause(error)}",
            expected="an answer",
            next_step="check the network and the proxy (https_proxy), or give a copy: --mirror URL-OR-FOLDER;"
            " what has arrived is kept, and the next try goes on from there",
        ) from None
    except OSError as error:
        raise DataError(
            f"{shown} could not be stored in the cache {cache}.",
            value=error.strerror or error,
            expected="a writable folder with enough space",
            next_step="free some space, or set another folder: WORKSHOP_DOWNLOADS; what has arrived is kept",
        ) from None
    raise AssertionError("unreachable")


def file_name(url: str) -> str:
    """Return the last part of an address's path, as the name of a file; raise DataError if there is none."""
    name = re.sub(r"[^\w.-]", "_", urlsplit(url).path.rsplit("/", 1)[-1])
    if not name.strip("._"):
        raise DataError(
            "The address names no file.", value=without_password(url), expected="an address such as https://HOST/FILE"
        )
    return name


def without_password(url: str) -> str:
    """Return an address fit to be shown."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rsplit("@", 1)[-1]))


class _Resuming:
    """A downloader for pooch: its own for HTTP, made to append to ``part``, and repeated while the fault may pass."""

    def __init__(self, part: Path, progress: bool, tries: int, wait_seconds: float, silence_seconds: float) -> None:
        self.part, self.progress, self.silence = part, progress, silence_seconds
        self.tries, self.wait = tries, wait_seconds

    def __call__(self, url: str, output_file: str, pooch, check_only: bool = False) -> None:  # noqa: ARG002
        import tenacity

        for attempt in tenacity.Retrying(
            stop=tenacity.stop_after_attempt(self.tries),
            wait=tenacity.wait_exponential(multiplier=self.wait, max=LONGEST_WAIT_SECONDS),
            retry=tenacity.retry_if_exception(_may_pass),
            before_sleep=lambda state: log.warning(
                "%s: %s; trying again", without_password(url), _cause(state.outcome.exception())
            ),
            reraise=True,
        ):
            with attempt, self.part.open("ab") as file:
                self._fetch_rest(url, file)
        self.part.replace(output_file)

    def _fetch_rest(self, url: str, file) -> None:
        import pooch
        import requests

        def start_over_unless_partial(response: requests.Response, **_) -> None:
            responses.append(response)
            partial = response.status_code == 206
            if partial and response.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
                return
            if partial or response.status_code in (200, 416):  # the whole file, or nothing that follows what is here
                file.truncate(0)
            if partial:
                raise requests.ConnectionError("the server sent another part than the one asked for")

        have, responses = file.tell(), []
        # Packed on the way, the byte counts would be those of the packed text.
        headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
        fetch = pooch.HTTPDownloader(
            progressbar=self.progress,
            chunk_size=1 << 18,
            headers=headers,
            timeout=self.silence,
            hooks={"response": start_over_unless_partial},
        )
        try:
            fetch(url, file, None)
        finally:
            for response in responses:  # one that failed would keep its connection
                response.close()


def _may_pass(error: BaseException) -> bool:
    import requests

    if isinstance(error, requests.HTTPError):
        return error.response.status_code in PASSING | {416}  # after 416 the start was thrown away
    passing = (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError)
    return isinstance(error, passing) and not isinstance(error, requests.exceptions.SSLError)


def _cause(error: BaseException) -> str:
    """Return the innermost reason: requests wraps it several times over, address and all."""
    inner = error
    while inner.args and isinstance(inner.args[-1], BaseException):
        inner = inner.args[-1]
    return str(getattr(inner, "reason", inner)).rsplit(">: ", 1)[-1][:200]


def _refused(shown: str, response: requests.Response) -> DataError:
    return DataError(
        f"{shown} could not be fetched.",
        value=f"HTTP {response.status_code} {response.reason}",
        expected="200 OK",
        next_step="open the address in a browser; if the publisher has moved the file, give a copy: --mirror"
        " URL-OR-FOLDER, or its new address in params.yaml (fetch.addresses)",
    )


def _other_content(shown: str, sha256: str | None, error: ValueError) -> DataError:
    found = re.search(r"but got (\w{64})", str(error))
    return DataError(
        f"What {shown} sends is not the published file; it was thrown away.",
        value=f"sha256 {found[1]}" if found else str(error),
        expected=f"sha256 {sha256}",
        next_step="open the address in a browser: is it a login or error page? Or fetch from elsewhere: --mirror"
        " URL-OR-FOLDER; if you know that file to be right, give its sha256 in params.yaml (fetch.addresses)",
    )
