"""Requests that no page would send: refused with a reason."""

from __future__ import annotations

import json

import pytest
import requests
from workplace import what_if


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"text"',
        b"{}",
        b'{"output": 1}',
        b'{"output": "no.such"}',
        json.dumps(what_if([1, 2, 3, 4, 5, 6]) | {"inputs": None}).encode(),
        json.dumps(what_if([1, 2, 3, 4, 5, 6]) | {"inputs": [{}]}).encode(),
        json.dumps(what_if([1, 2, 3, 4, 5, 6]) | {"inputs": [[1]]}).encode(),
        json.dumps(what_if([1, 2, 3, 4, 5, 6]) | {"outputs": {"id": "x", "property": "y"}}).encode(),
        json.dumps(what_if([1, 2, 3, 4, 5, 6]) | {"changedPropIds": 7}).encode(),
        json.dumps(what_if([1, 2, 3, 4, 5, 6]) | {"changedPropIds": [{}]}).encode(),
        json.dumps(what_if([1, 2, 3, 4, 5, 6]) | {"state": "x"}).encode(),
    ],
)
def test_dashboard_refuses_malformed_requests_with_a_reason(url, body):
    """A callback request that no page would send is answered 400 with a reason and no traceback."""
    answer = requests.post(
        f"{url}/_dash-update-component", data=body, headers={"Content-Type": "application/json"}, timeout=30
    )
    assert answer.status_code == 400
    assert set(answer.json()) == {"error"}


def test_dashboard_refuses_a_huge_body(url):
    """A body beyond the largest file is refused without being read as a request."""
    assert requests.post(f"{url}/_dash-update-component", data=b" " * 5_000_000, timeout=30).status_code == 413
