"""The callbacks of every page: show the address that is asked for, and follow what is served."""

from __future__ import annotations

import address
import layout
import pages
from dash import ClientsideFunction, Dash, Input, Output, State, no_update
from dash.exceptions import PreventUpdate
from serving import Follower


def register(app: Dash, serving: Follower) -> None:
    """Connect all pages; no callback waits for anything but the model's own arithmetic."""

    @app.callback(
        Output("navigation", "children"),
        Output("shown", "data"),
        Output("page", "children"),
        Input("asked", "data"),
        prevent_initial_call=True,
    )
    def show_page(asked):
        """Show the page of another address, without a reload."""
        links, title, content = layout.view(serving.now, address.parse(asked))
        return links, [asked, title], content

    @app.callback(
        Output("revision", "data"),
        Output("model", "children"),
        Output("message", "children"),
        Output("attribution", "children"),
        Output("notice", "children"),
        Output("version", "data"),
        Input("clock", "n_intervals"),
        State("revision", "data"),
        State("version", "data"),
        prevent_initial_call=True,
    )
    def follow(_ticks, revision, before):
        """Show what is new, if anything is; the page's own parts follow the revision."""
        served = serving.now
        if served.revision == revision:
            raise PreventUpdate
        version, notice = layout.version(served), no_update
        if served.production is not None and isinstance(before, str) and before != version:
            notice = layout.notice(served, before)
        changed = layout.model(served), layout.message(served), layout.attribution(served)
        return served.revision, *changed, notice, version or no_update

    app.clientside_callback(ClientsideFunction("address", "name_window"), Input("shown", "data"))
    for page in pages.PAGES:
        page.register(app, serving)
