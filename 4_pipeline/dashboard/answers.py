"""The same request gets the same answer for as long as the same is served: it is kept as the bytes that went out."""

from __future__ import annotations

import functools
from collections.abc import Callable

from dash import Dash
from flask import Flask, Response, make_response, request
from guard import ANY_PATH, CALLBACKS, takes_uploads
from serving import Serving

KEPT = ("/", ANY_PATH, "/_dash-layout", "/_dash-dependencies", CALLBACKS)  # as Dash calls its endpoints
LONGEST_REQUEST_BYTES = 20_000


def keep(app: Dash, server: Flask, serving: Serving) -> None:
    """Answer callbacks and pages from memory where they were answered before.

    They follow from what is served and from the request alone, and a new version empties the memory. Uploads are never
    kept.
    """
    for endpoint in KEPT:
        server.view_functions[endpoint] = _kept(app, serving, server.view_functions[endpoint])


def _kept(app: Dash, serving: Serving, view: Callable) -> Callable:
    @functools.wraps(view)
    def answer(**path: str) -> Response:
        def make() -> tuple[bytes, str]:
            response = make_response(view(**path))
            return response.get_data(), response.mimetype

        key = _key(app)
        if key is None:
            return view(**path)
        data, mimetype = serving.now.cached(key, make)
        return Response(data, mimetype=mimetype)

    return answer


def _key(app: Dash) -> tuple | None:
    """Return all that an answer depends on besides what is served; None for one that is not kept."""
    if request.method != "POST":
        return request.script_root, request.full_path, request.headers.get("Referer")
    body = request.get_data(cache=True)
    if len(body) > LONGEST_REQUEST_BYTES or takes_uploads(app, request.get_json()["output"]):
        return None
    return request.script_root, CALLBACKS, body
