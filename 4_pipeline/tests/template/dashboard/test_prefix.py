"""The dashboard behind a proxy with a path prefix, such as JupyterLab."""

from __future__ import annotations

import re

import pytest

PREFIX = "/user/x/dashboard"
PROXIED = {"X-Forwarded-Prefix": PREFIX}


def addresses(page: str) -> list[str]:
    """Return the addresses of the dashboard in its HTML, or in Dash's layout."""
    return re.findall(r'(?:href|src|requests_pathname_prefix)"?[=:] ?"(/[^"]*)"', page.replace("\\u002f", "/"))


def test_prefix_of_one_request_is_not_used_for_another(made):
    """The cache is separate for each prefix, in any order of requests."""
    _, client = made()
    for path in ("/", "/_dash-layout"):
        for headers in (PROXIED, {}, PROXIED):
            links = addresses(client.get(path, headers=headers).text)
            assert {address.startswith(PREFIX) for address in links} == {bool(headers)}


@pytest.mark.parametrize("header", ['/"><script>alert(1)</script>', "no-path", "//", "/a b", "/a\\u0022"])
def test_invalid_prefix_is_ignored(made, header):
    """A header that is no path is not written into the page."""
    _, client = made()
    assert client.get("/", headers={"X-Forwarded-Prefix": header}).text.count(header) == 0
    assert all(not address.startswith("//") for address in addresses(client.get("/").text))
