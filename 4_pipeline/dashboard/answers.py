"""The same request gets the same answer for as long as the same is served: it is kept as the bytes that went out."""

from __future__ import annotations

from dash import Dash
from flask import Flask, Response, g, request
from guard import ANY_PATH, CALLBACKS, takes_uploads
from serving import Serving

PAGES = ("/", ANY_PATH, "/_dash-layout", "/_dash-dependencies")  # as Dash calls its endpoints
LONGEST_REQUEST_BYTES = 20_000
LONGEST_ANSWER_BYTES = 1_000_000


def keep(app: Dash, server: Flask, serving: Serving) -> None:
    """Answer callbacks and pages from memory where they were answered before.

    They follow from what is served and from the request alone. Uploads are never kept.
    """

    @server.before_request
    def find() -> Response | None:
        g.kept_as = _key(app)
        if g.kept_as is None:
            return None
        g.memo = serving.now.memo  # of what is served now; should it change meanwhile, this memo is gone
        found = g.memo.find(g.kept_as)
        if found is None:
            return None
        g.kept_as = None
        data, mimetype = found
        return Response(data, mimetype=mimetype)

    @server.after_request
    def remember(response: Response) -> Response:
        if g.get("kept_as") and response.status_code == 200 and not response.is_streamed:
            data = response.get_data()
            if len(data) <= LONGEST_ANSWER_BYTES:
                g.memo.keep(g.kept_as, (data, response.mimetype))
        return response


def _key(app: Dash) -> tuple | None:
    """Return all that an answer depends on besides what is served; None for one that is not kept."""
    if request.method == "POST" and request.path == CALLBACKS:
        body = request.get_data(cache=True)
        if len(body) > LONGEST_REQUEST_BYTES or takes_uploads(app, request.get_json().get("output")):
            return None
        return CALLBACKS, body, request.query_string
    if request.method == "GET" and request.endpoint in PAGES:
        return request.full_path, request.headers.get("Referer")
    return None
