"""The record of a version: its explanations must be figures."""

from __future__ import annotations

import json

import plotly.graph_objects as go
import pytest
from dashboard import record
from forecast.terms.errors import ModelError


def _json(**changes) -> str:
    return json.dumps(json.loads(go.Figure(go.Bar(x=["wind"], y=[1.0])).to_json()) | changes)


@pytest.mark.parametrize(
    "content",
    [
        "", "[]", "[" * 50_000 + "]" * 50_000, _json(data=[{"type": "bar", "nothing": 1}]), _json(more=1),
        _json(layout={"meta": "x" * 1_000_001}),
    ],
)  # fmt: skip
def test_other_content_is_rejected(content):
    """Invalid JSON, unknown properties, and size."""
    with pytest.raises(ModelError, match="not a valid figure"):
        record.figure(content, "explanations/importance.json")
