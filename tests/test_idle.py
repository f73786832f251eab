"""The CPU usage of idle servers."""

from __future__ import annotations

import time

import pytest
from dashboard.follower import ACTIVE_SECONDS
from workplace import processes_of

pytestmark = pytest.mark.soak

SECONDS = 120
MOST_PERCENT = 3.0  # of one CPU; 1.8 on an idle machine, 17.7 with Dask's default intervals


def test_idle_servers_use_little_cpu(servers):
    """After `make run` all processes together use a few percent of one CPU."""
    time.sleep(ACTIVE_SECONDS + 10)
    before = _seconds(servers.root)
    time.sleep(SECONDS)
    after = _seconds(servers.root)
    percent = {name: 100 * (after[name] - before.get(name, 0)) / SECONDS for name in after}
    assert sum(percent.values()) < MOST_PERCENT, percent


def _seconds(root) -> dict[str, float]:
    """Return the CPU seconds of each process of a clone."""
    return {f"{each.pid} {' '.join(each.cmdline())[-80:]}": sum(each.cpu_times()[:2]) for each in processes_of(root)}
