"""Hosts that only programs of this machine reach."""

from __future__ import annotations

LOOPBACK = ("127.0.0.1", "localhost", "::1")


def is_loopback(host: str) -> bool:
    """Return whether only programs of this machine reach a server at this host name or address."""
    return host in LOOPBACK or host.startswith("127.")
