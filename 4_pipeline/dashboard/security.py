"""Reject requests from other sites; return errors as JSON, with the details only in the log."""

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

# Enough for MAX_ROWS rows in full precision as the body of `/predict`, even with each value on its own line, and for
# the callback that receives a file of MAX_BYTES as base64 (four characters for three bytes).
MAX_BODY_BYTES = MAX_BYTES * 2
HOSTS = "DASHBOARD_ALLOWED_HOSTS"  # environment variable that lists further allowed hosts, such as a proxy
ANY_PATH = "/<path:path>"  # Dash serves its page at every path, even unknown ones

# Content Security Policy. JupyterLab frames the pages under its own URL; Dash and plotly use inline styles, and
# Bootstrap's icons are data URLs. https://developer.mozilla.org/docs/Web/HTTP/Guides/CSP
POLICY = (
    "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; object-src 'none';"
    " base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
)

log = logging.getLogger(__name__)


def protect(app: Dash, paths: Collection[str]) -> None:
    """Reject foreign hosts and large bodies, and return errors as JSON.

    ``paths`` are the paths of the pages; any other path shows `Page not found` with status 404.
    """
    server = app.server
    server.config["MAX_CONTENT_LENGTH"] = MAX_BODY_BYTES
    server.register_error_handler(Exception, _answer_error)
    policy = f"{POLICY}; script-src 'self' {' '.join(app.csp_hashes())}"

    @server.before_request
    def check_request() -> None:
        host = request.headers.get("Host", "")
        if not is_allowed(host):
            reason = f"the host {host[:80]!r} is neither localhost nor a private address nor in {HOSTS}; to allow it,"
            abort(HTTPStatus.FORBIDDEN, f"{reason} set this environment variable, as in {HOSTS}=dash.company.lan")

    @server.after_request
    def add_headers(response: Response) -> Response:
        response.headers.setdefault("Content-Security-Policy", policy)
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["Referrer-Policy"] = "same-origin"  # `address.of_referrer` needs the referrer
        if request.endpoint == ANY_PATH and request.path not in paths and response.status_code == HTTPStatus.OK:
            response.status_code = HTTPStatus.NOT_FOUND
        return response


def _answer_error(error: Exception) -> tuple[Response, int]:
    """Return 4xx with a reason for a bad request, and 500 for a bug in the dashboard."""
    if isinstance(error, RequestEntityTooLarge):
        reason = f"the body is too large: at most {MAX_BODY_BYTES:,} bytes are allowed, and {MAX_BYTES:,} for a file"
        status = error.code
    elif isinstance(error, HTTPException):
        reason, status = error.description or error.name, error.code or HTTPStatus.INTERNAL_SERVER_ERROR
    elif isinstance(error, DependencyException):
        reason, status = "file not found", HTTPStatus.NOT_FOUND
    elif isinstance(error, RecursionError):
        reason, status = "the body is nested too deeply", HTTPStatus.BAD_REQUEST
    else:
        reason, status = InternalServerError.description, HTTPStatus.INTERNAL_SERVER_ERROR
        log.error("%s failed", request.method, exc_info=error)
    # repr escapes line breaks in the path, which could forge log entries.
    log.info("%s %s answered with %d: %.80s", request.method, repr(request.path)[1:81], status, reason)
    return jsonify(error=reason), status


def is_allowed(host: str) -> bool:
    """Return whether a host is localhost, a private address or in `HOSTS`: protection against DNS rebinding.

    https://en.wikipedia.org/wiki/DNS_rebinding
    """
    try:
        name = urlsplit(f"//{host}").hostname or ""
        allowed = os.environ.get(HOSTS, "").lower().replace(",", " ").split()
        return name in ("localhost", *allowed) or ip_address(name).is_private
    except ValueError:
        return False
