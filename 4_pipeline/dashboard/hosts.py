"""Loopback hosts."""

from __future__ import annotations

LOOPBACK = ("127.0.0.1", "localhost", "::1")


def is_loopback(host: str) -> bool:
    """Return whether a host name or address is loopback, that is, reachable only from this machine."""
    return host in LOOPBACK or host.startswith("127.")
