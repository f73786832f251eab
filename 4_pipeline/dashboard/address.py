"""The address of a view: which page, and what the reader set there; any text is accepted."""

from __future__ import annotations

import re
from urllib.parse import parse_qsl, urlsplit

import flask

MAX_CHARACTERS = 2000  # no view needs more
MAX_FIELDS = 20
PREFIX = re.compile(r"(?:/[\w.~%@+-]+)+")


def parse(url: object) -> tuple[str, dict[str, str]]:
    """Return a page's path and the fields of the query, the last one of each name; the front page if there is none."""
    if not isinstance(url, str) or len(url) > MAX_CHARACTERS:
        return "/", {}
    try:
        parts = urlsplit(url)
        query = dict(parse_qsl(parts.query, max_num_fields=MAX_FIELDS))
    except ValueError:
        return url.split("?")[0] if url.startswith("/") else "/", {}
    return parts.path.removeprefix(prefix()) or "/", query


def prefix() -> str:
    """Return the path under which the reader sees the dashboard, as JupyterLab sends it; empty without a proxy.

    A header that is not a path is ignored, since it would be written into the page.
    """
    root = flask.request.script_root if flask.has_request_context() else ""
    return root if PREFIX.fullmatch(root) else ""


def link(path: str) -> str:
    """Return the address of a path of the dashboard as the reader's browser needs it."""
    return prefix() + path


def of_referrer() -> str:
    """Return path and query of the page that asks for the layout.

    A browser that sends no referrer gets the front page, and then asks for its own (`assets/address.js`).
    """
    url = flask.request.referrer if flask.has_request_context() else None
    _, slash, rest = (url or "").removeprefix("https://").removeprefix("http://").partition("/")
    return slash + rest.split("#")[0] or "/"
