"""Requests that are not of the page's making: refused with a reason, before Dash stumbles over them."""

from __future__ import annotations

from dash import Dash
from flask import Flask, Response, jsonify, request

LARGEST_BODY_BYTES = 1_000_000


def protect(app: Dash, server: Flask) -> None:
    """Answer 400 with a reason to malformed callback requests; Dash itself answers 500 to most of them."""

    @server.before_request
    def refuse_malformed() -> tuple[Response, int] | None:
        if not request.path.endswith("/_dash-update-component") or request.method != "POST":
            return None
        reason = fault(app, request.get_json(silent=True))
        return (jsonify(error=reason), 400) if reason else None


def fault(app: Dash, body: object) -> str | None:
    """Return what is wrong with the body of a callback request, or None; values are the callbacks' own to check."""
    if not isinstance(body, dict):
        return "the body is not a JSON object"
    name = body.get("output")
    declared = app.callback_map.get(name) if isinstance(name, str) else None
    if declared is None or "callback" not in declared:  # those without run in the browser
        return "there is no such output"
    for key, wanted in (("inputs", declared["inputs"]), ("state", declared["state"])):
        given = body.get(key, [])
        if not _are_properties(given) or _names(given) != _names(wanted):
            return f"`{key}` is not what the output needs"
    outputs = body.get("outputs")
    outputs = outputs if isinstance(outputs, list) else [outputs]
    if not _are_properties(outputs) or _names(outputs) != name.removeprefix("..").removesuffix("..").split("..."):
        return "`outputs` is not what the output names"
    changed = body.get("changedPropIds", [])
    if not isinstance(changed, list) or not set(map(str, changed)) <= set(_names(declared["inputs"])):
        return "`changedPropIds` names no input"
    return None


def _are_properties(items: object) -> bool:
    return isinstance(items, list) and all(isinstance(item, dict) and {"id", "property"} <= set(item) for item in items)


def _names(items: list[dict]) -> list[str]:
    return [f"{item['id']}.{item['property']}" for item in items]
