"""What the servers take while nobody uses them."""

from __future__ import annotations

import time

import pytest
from dashboard.follower import ACTIVE_SECONDS
from workplace import processes_of

pytestmark = pytest.mark.soak

SECONDS = 120
MOST_PERCENT = 3.0  # of a processor; 1.8 on a quiet machine, and 17.7 with the intervals that Dask has by itself


def test_idle_servers_take_little(servers):
    """After `make run` all processes together take a few percent of one processor."""
    time.sleep(ACTIVE_SECONDS + 10)
    before = _seconds(servers.root)
    time.sleep(SECONDS)
    after = _seconds(servers.root)
    percent = {name: 100 * (after[name] - before.get(name, 0)) / SECONDS for name in after}
    assert sum(percent.values()) < MOST_PERCENT, percent


def _seconds(root) -> dict[str, float]:
    """Return the processor seconds of each process of a clone."""
    return {f"{each.pid} {' '.join(each.cmdline())[-80:]}": sum(each.cpu_times()[:2]) for each in processes_of(root)}
