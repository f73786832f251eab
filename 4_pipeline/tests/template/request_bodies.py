"""Request bodies of callbacks, built from the declarations of the app."""

from __future__ import annotations

import json
from typing import Any

URL = "/_dash-update-component"
DEFAULTS: dict[str, Any] = {  # typical values, by property
    "contents": "data:text/csv;base64,d2luZHNwZWVkCjE=",
    "filename": "weather.csv",
    "n_clicks": 1,
    "n_intervals": 1,
}


def body_of(app, output: str, **values: Any) -> dict[str, Any]:
    """Return a request to the callback of an output; ``values`` by `id` or `property`, dashes as underscores."""
    declared = app.callback_map[output]
    inputs, state = (
        [{"id": _id(item["id"]), "property": item["property"], "value": _value(item, values)} for item in declared[key]]
        for key in ("inputs", "state")
    )
    named = not declared.get("no_output")
    names = output.removeprefix("..").removesuffix("..").split("...") if output.startswith("..") else [output]
    outputs = [dict(zip(("id", "property"), name.rsplit(".", 1), strict=True)) for name in names] if named else []
    return {
        "output": output,
        "outputs": outputs[0] if len(outputs) == 1 and not output.startswith("..") else outputs,
        "inputs": inputs,
        "state": state,
        "changedPropIds": [f"{item['id']}.{item['property']}" for item in declared["inputs"][:1]],
    }


def output_with(app, part: str) -> str:
    """Return the name of the server callback with an output that contains ``part``."""
    return next(name for name, declared in app.callback_map.items() if part in name and "callback" in declared)


def _id(identity: str) -> Any:
    return json.loads(identity) if identity.startswith("{") else identity


def _value(item: dict[str, str], values: dict[str, Any]) -> Any:
    for name in (item["id"].replace("-", "_"), item["property"]):
        if name in values:
            return values[name]
    return DEFAULTS.get(item["property"])
