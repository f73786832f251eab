"""Of a run's explanations only figures are shown; answers are made once."""

from __future__ import annotations

import json
import threading

import plotly.graph_objects as go
import pytest

from workshop.errors import ModelError


def _json(**changes) -> bytes:
    return json.dumps(json.loads(go.Figure(go.Bar(x=["wind"], y=[1.0])).to_json()) | changes).encode()


def test_figures_of_ours_are_taken():
    """What `log_explanations` writes is read as it was."""
    import record

    figure = go.Figure([go.Bar(x=["wind"], y=[1.0]), go.Scatter(x=[1, 2], y=[3, 4])], {"title": {"text": "R² < 1"}})
    assert go.Figure(record.figure(figure.to_json().encode(), "importance")) == figure


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe",
        b"[]",
        b"7",
        b'"text"',
        b"[" * 50_000 + b"]" * 50_000,
        _json(data=[{"type": "bar", "nothing": 1}]),
        _json(frames=[]),
        _json(more=1),
        _json(layout={"meta": "x" * 1_000_001}),
    ],
)
def test_what_is_no_figure_of_ours_is_refused(content):
    """JSON that is none, unknown properties, and size."""
    import record

    with pytest.raises(ModelError, match="no figure of ours"):
        record.figure(content, "explanations/importance.json")


def test_answer_is_made_once_for_all_who_ask():
    """Twenty who ask at once get the one answer that was made; what fails is made again for the next."""
    from memo import MOST_KEPT, Memo

    memo, made, ready = Memo(), [], threading.Barrier(20)

    def make() -> object:
        made.append(1)
        return object()

    answers = []

    def ask() -> None:
        ready.wait(10)
        answers.append(memo.get("key", make))

    threads = [threading.Thread(target=ask) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert len(made) == 1
    assert len(set(map(id, answers))) == 1
    with pytest.raises(ZeroDivisionError):
        memo.get("other", lambda: 1 // 0)
    assert memo.get("other", lambda: None) is None
    for number in range(MOST_KEPT):
        memo.get("key", make)  # asked for all along, and so kept
        memo.get(number, lambda: "x")
    assert len(made) == 1
    assert memo.get("other", lambda: "dropped meanwhile") == "dropped meanwhile"
