"""Protection against requests that no page makes; every error is answered as JSON, and described in the log alone."""

from __future__ import annotations

import logging
import os
from collections.abc import Collection
from http import HTTPStatus
from ipaddress import ip_address
from urllib.parse import urlsplit

from dash import Dash
from dash.exceptions import DependencyException
from flask import Response, abort, jsonify, request
from werkzeug.exceptions import HTTPException, InternalServerError, RequestEntityTooLarge

from .requests import MAX_BYTES

# As many rows as `/predict` accepts take a third of it, or all of it with every digit and each value on a line of its
# own. A file travels in a callback as base64, four letters for three bytes.
MAX_BODY_BYTES = MAX_BYTES * 2
HOSTS = "DASHBOARD_ALLOWED_HOSTS"  # the variable with further names of the dashboard, as behind a proxy
ANY_PATH = "/<path:path>"  # Dash shows the page at every path

# What a page may load, and who may frame it: JupyterLab, which shows it under its own address. Dash and plotly style
# what they draw, and Bootstrap's pictures are within its styles. https://developer.mozilla.org/docs/Web/HTTP/Guides/CSP
POLICY = (
    "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; object-src 'none';"
    " base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
)

log = logging.getLogger(__name__)


def protect(app: Dash, paths: Collection[str]) -> None:
    """Refuse foreign hosts and large bodies, and answer every error as JSON.

    ``paths`` are those of the pages; any other path shows the page that says so, with status 404.
    """
    server = app.server
    server.config["MAX_CONTENT_LENGTH"] = MAX_BODY_BYTES
    server.register_error_handler(Exception, _answer_error)
    policy = f"{POLICY}; script-src 'self' {' '.join(app.csp_hashes())}"

    @server.before_request
    def check_request() -> None:
        host = request.headers.get("Host", "")
        if not is_allowed(host):
            reason = f"the host {host[:80]!r} is neither localhost, a private address nor in {HOSTS}; to allow a name,"
            abort(HTTPStatus.FORBIDDEN, f"{reason} start the dashboard with it, such as {HOSTS}=dash.company.lan")

    @server.after_request
    def add_headers(response: Response) -> Response:
        response.headers.setdefault("Content-Security-Policy", policy)
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["Referrer-Policy"] = "same-origin"  # the layout is made for the page that asks for it
        if request.endpoint == ANY_PATH and request.path not in paths and response.status_code == HTTPStatus.OK:
            response.status_code = HTTPStatus.NOT_FOUND
        return response


def _answer_error(error: Exception) -> tuple[Response, int]:
    """Answer 4xx with a reason when the request is at fault, and 500 when the dashboard is."""
    if isinstance(error, RequestEntityTooLarge):
        reason = f"the body is too large: {MAX_BODY_BYTES:,} bytes are allowed, {MAX_BYTES:,} for a file"
        status = error.code
    elif isinstance(error, HTTPException):
        reason, status = error.description or error.name, error.code or HTTPStatus.INTERNAL_SERVER_ERROR
    elif isinstance(error, DependencyException):
        reason, status = "there is no such file", HTTPStatus.NOT_FOUND
    elif isinstance(error, RecursionError):
        reason, status = "the body is nested too deeply", HTTPStatus.BAD_REQUEST
    else:
        reason, status = InternalServerError.description, HTTPStatus.INTERNAL_SERVER_ERROR
        log.error("%s failed", request.method, exc_info=error)
    # The path in one line, and not at any length.
    log.info("%s %s answered with %d: %.80s", request.method, repr(request.path)[1:81], status, reason)
    return jsonify(error=reason), status


def is_allowed(host: str) -> bool:
    """Return whether a host is localhost, a private address or in `HOSTS`: no other site can make it mean this machine.

    https://en.wikipedia.org/wiki/DNS_rebinding
    """
    try:
        name = urlsplit(f"//{host}").hostname or ""
        named = os.environ.get(HOSTS, "").lower().replace(",", " ").split()
        return name in ("localhost", *named) or ip_address(name).is_private
    except ValueError:
        return False
