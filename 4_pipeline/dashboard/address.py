"""Parse and build the URLs of views: the path selects the page, and the query holds the user's choices."""

from __future__ import annotations

import re
from urllib.parse import parse_qsl, urlsplit

import flask

MAX_CHARACTERS = 2000  # longer than the URL of any view
MAX_FIELDS = 20
PREFIX = re.compile(r"(?:/[\w.~%@+-]+)+")


def parse(url: object) -> tuple[str, dict[str, str]]:
    """Return a URL's path and query fields (the last value if repeated): `/` or no fields if it is invalid."""
    if not isinstance(url, str) or len(url) > MAX_CHARACTERS:
        return "/", {}
    try:
        parts = urlsplit(url)
        query = dict(parse_qsl(parts.query, max_num_fields=MAX_FIELDS))
    except ValueError:
        return url.split("?")[0] if url.startswith("/") else "/", {}
    return parts.path.removeprefix(prefix()) or "/", query


def prefix() -> str:
    """Return the path prefix sent by a proxy such as JupyterLab; empty without a proxy.

    A header that is not a path is ignored: it would be written into the page's HTML and could inject code.
    """
    root = flask.request.script_root if flask.has_request_context() else ""
    return root if PREFIX.fullmatch(root) else ""


def link(path: str) -> str:
    """Return a dashboard path with the current request's prefix."""
    return prefix() + path


def of_referrer() -> str:
    """Return the path and query of the page that requests the layout.

    Without a referrer, return the front page; `assets/address.js` then requests the page in the address bar.
    """
    url = flask.request.referrer if flask.has_request_context() else None
    _, slash, rest = (url or "").removeprefix("https://").removeprefix("http://").partition("/")
    return slash + rest.split("#")[0] or "/"
