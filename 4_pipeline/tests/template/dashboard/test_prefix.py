"""The dashboard behind a proxy that shows it under a path of its own, as JupyterLab does."""

from __future__ import annotations

import re

import pytest

PREFIX = "/user/x/dashboard"
PROXIED = {"X-Forwarded-Prefix": PREFIX}


def addresses(page: str) -> list[str]:
    """Return the addresses that the page, or what Dash makes its layout of, names on the dashboard itself."""
    return re.findall(r'(?:href|src|requests_pathname_prefix)"?[=:] ?"(/[^"]*)"', page.replace("\\u002f", "/"))


def test_prefix_of_one_reader_is_not_shown_to_another(made):
    """What is kept for readers behind the proxy is not what others get, whoever asks first."""
    _, client = made()
    for path in ("/", "/_dash-layout"):
        for headers in (PROXIED, {}, PROXIED):
            seen = addresses(client.get(path, headers=headers).text)
            assert {address.startswith(PREFIX) for address in seen} == {bool(headers)}


@pytest.mark.parametrize("header", ['/"><script>alert(1)</script>', "no-path", "//", "/a b", "/a\\u0022"])
def test_prefix_that_is_no_path_is_not_believed(made, header):
    """What would stand in the page as something else than a path is left out."""
    _, client = made()
    assert client.get("/", headers={"X-Forwarded-Prefix": header}).text.count(header) == 0
    assert all(not address.startswith("//") for address in addresses(client.get("/").text))
