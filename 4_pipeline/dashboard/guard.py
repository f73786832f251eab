"""Requests that are not of the page's making: refused with a reason, before Dash stumbles over them."""

from __future__ import annotations

import json
import logging
from collections.abc import Collection
from http import HTTPStatus
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

from dash import Dash
from dash.exceptions import DependencyException
from flask import Flask, Response, g, jsonify, request
from werkzeug.exceptions import HTTPException, MethodNotAllowed, NotFound, RequestEntityTooLarge

from workshop.data.weather import MOST_BYTES

# As many rows as `/predict` declares take a third of it, or all of it with every digit and each value on a line of its
# own. A file travels in a callback as base64, four letters for three bytes.
LARGEST_BODY_BYTES = MOST_BYTES * 2
WRITABLE = range(-(2**63), 2**64)  # by orjson: https://github.com/ijl/orjson#int
DEEPEST = 30  # lists within lists of a body; a figure has ten
CALLBACKS = "/_dash-update-component"
ANY_PATH = "/<path:path>"  # Dash shows the page at every path
WILDCARDS_OF_MANY = (["ALL"], ["ALLSMALLER"])

# What a page may load, and who may frame it: JupyterLab, which shows it under its own address. Dash and plotly style
# what they draw, and Bootstrap's pictures are within its styles. https://developer.mozilla.org/docs/Web/HTTP/Guides/CSP
POLICY = (
    "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; object-src 'none'; base-uri 'none';"
    " form-action 'none'; frame-ancestors 'self'"
)

log = logging.getLogger(__name__)


def protect(app: Dash, server: Flask, paths: Collection[str]) -> None:
    """Answer whatever no page would send with 4xx and a reason; Dash itself answers 200 or 500 to most of it.

    ``paths`` are those of pages. To any other, a browser gets the page that says so, and a program a reason. An error
    that nobody foresaw is answered with 500 and told in the log, and there alone.
    """
    server.config["MAX_CONTENT_LENGTH"] = LARGEST_BODY_BYTES
    policy = f"{POLICY}; script-src 'self' {' '.join(app.csp_hashes())}"

    @server.before_request
    def refuse_strange_host() -> tuple[Response, int] | None:
        """Answer under no name that another site can make mean this machine (DNS rebinding)."""
        if _is_own(request.headers.get("Host", "")):
            return None
        return _answer("the Host is neither localhost nor a private address", HTTPStatus.FORBIDDEN)

    @server.after_request
    def limit_browsers(response: Response) -> Response:
        response.headers["Content-Security-Policy"] = policy
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["Referrer-Policy"] = "same-origin"  # the layout is made for the page that asks for it
        return response

    @server.before_request
    def refuse_unknown() -> None:
        if request.endpoint != ANY_PATH or request.path in paths:
            return
        if "POST" in server.url_map.bind("").allowed_methods(request.path):
            raise MethodNotAllowed(["POST"])
        if "text/html" not in request.accept_mimetypes.values():  # `*/*` is what programs say
            raise NotFound
        g.unknown = True

    @server.after_request
    def say_that_it_is_unknown(response: Response) -> Response:
        if g.get("unknown"):
            response.status_code = HTTPStatus.NOT_FOUND
        return response

    @server.before_request
    def refuse_malformed() -> tuple[Response, int] | None:
        if request.path != CALLBACKS or request.method != "POST":
            return None
        reason = fault(app, json_body())
        return _answer(reason, HTTPStatus.BAD_REQUEST) if reason else None

    @server.errorhandler(HTTPException)
    def refused(error: HTTPException) -> tuple[Response, int]:
        return _answer(_words(error), error.code or HTTPStatus.INTERNAL_SERVER_ERROR)

    @server.errorhandler(DependencyException)
    def no_such_file(_error: DependencyException) -> tuple[Response, int]:
        return _answer("there is no such file", HTTPStatus.NOT_FOUND)

    @server.errorhandler(Exception)
    def unforeseen(error: Exception) -> tuple[Response, int]:
        log.error("%s %s failed", request.method, _path(), exc_info=error)
        return jsonify(error="something went wrong here; the dashboard's log says what"), 500


def _is_own(host: str) -> bool:
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return name == "localhost" or ip_address(name).is_private
    except ValueError:
        return False


def json_body() -> Any:
    """Return the request's body as JSON has it; None when it is none, is nested too deeply, or cannot be written."""
    try:
        body = request.get_json(silent=True)
        return body if _is_plain(body) else None
    except RecursionError:
        return None


def takes_uploads(app: Dash, output: object) -> bool:
    """Tell whether a callback is given the contents of files."""
    declared = app.callback_map.get(output, {}) if isinstance(output, str) else {}
    return any(item["property"] == "contents" for key in ("inputs", "state") for item in declared.get(key, []))


def fault(app: Dash, body: object) -> str | None:
    """Return what is wrong with the body of a callback request, or None; values are the callbacks' own to check."""
    if not isinstance(body, dict):
        return "the body is no JSON object that can be used"
    name = body.get("output")
    declared = app.callback_map.get(name) if isinstance(name, str) else None
    if declared is None or "callback" not in declared:  # without: it runs in the browser
        return "there is no such output"
    for key in ("inputs", "state"):
        if not _fit(body.get(key, []), declared[key]):
            return f"`{key}` is not what the output needs"
    if not _fit(_listed(body.get("outputs")), [] if declared.get("no_output") else _outputs(name)):
        return "`outputs` is not what the output names"
    changed = body.get("changedPropIds", [])
    if not isinstance(changed, list) or not set(map(str, changed)) <= set(_names(body.get("inputs", []))):
        return "`changedPropIds` names no input"
    return None


def _fit(given: object, wanted: list[dict]) -> bool:
    """Tell whether items are those that a callback declares, one by one."""
    return (
        isinstance(given, list)
        and len(given) == len(wanted)
        and all(_fits(item, declared) for item, declared in zip(given, wanted, strict=True))
    )


def _fits(given: object, wanted: dict) -> bool:
    """Tell whether an item is the one declared; for a pattern, an item or a list of items that it matches."""
    if not wanted["id"].startswith("{"):
        return _is_property(given, wanted["property"]) and given["id"] == wanted["id"]
    pattern = json.loads(wanted["id"])
    items = given if any(part in WILDCARDS_OF_MANY for part in pattern.values()) else [given]
    return isinstance(items, list) and all(
        _is_property(item, wanted["property"]) and _matches(item["id"], pattern) for item in items
    )


def _is_property(item: object, name: str) -> bool:
    return isinstance(item, dict) and "id" in item and item.get("property") == name


def _matches(given: object, pattern: dict) -> bool:
    return (
        isinstance(given, dict)
        and given.keys() == pattern.keys()
        and all(
            isinstance(given[key], str | int | float) if isinstance(part, list) else given[key] == part
            for key, part in pattern.items()
        )
    )


def _outputs(name: str) -> list[dict]:
    """Return the outputs that a callback's name names."""
    names = name.removeprefix("..").removesuffix("..").split("...") if name.startswith("..") else [name]
    return [dict(zip(("id", "property"), part.rsplit(".", 1), strict=True)) for part in names]


def _listed(items: object) -> list:
    return items if isinstance(items, list) else [] if items is None else [items]


def _names(items: list) -> list[str]:
    """Return what Dash calls the properties, those of patterns included."""
    return [name for item in items for name in (_names(item) if isinstance(item, list) else [_name(item)])]


def _name(item: dict) -> str:
    identity = item["id"]
    if isinstance(identity, dict):
        identity = json.dumps(identity, sort_keys=True, separators=(",", ":"))
    return f"{identity}.{item['property']}"


def _is_plain(body: object) -> bool:
    """Tell whether a body can be walked through and written again: JSON can name halves of characters, and integers of
    any length, of which Dash writes those of 64 bits.
    """
    level: list[object] = [body]
    for _ in range(DEEPEST):
        below = []
        for value in level:
            if isinstance(value, dict):
                below += [*value.keys(), *value.values()]
            elif isinstance(value, list):
                below += value
            elif (isinstance(value, str) and not _is_text(value)) or (isinstance(value, int) and value not in WRITABLE):
                return False
        if not below:
            return True
        level = below
    return False


def _is_text(value: str) -> bool:
    return value.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in value)


def _words(error: HTTPException) -> str:
    if isinstance(error, RequestEntityTooLarge):
        return f"the body is too large: {LARGEST_BODY_BYTES:,} bytes are allowed, {MOST_BYTES:,} for a file"
    return error.name.lower()


def _answer(reason: str, status: int) -> tuple[Response, int]:
    log.info("%s %s refused with %d: %s", request.method, _path(), status, reason)
    return jsonify(error=reason), status


def _path() -> str:
    """Return the path as it can be logged: in one line, and not at any length."""
    return repr(request.path)[1:81]
