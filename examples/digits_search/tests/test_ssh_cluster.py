"""The search on two machines by SSH."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

from machines import PIPES
from ssh_nodes import PROGRAMS, ssh_cluster, two_nodes, typed
from test_digits_search import BEST, MOST_SECONDS
from workplace import required, wait_for


def test_cluster_by_ssh(tmp_path):
    """`python ssh_cluster.py` prints the command that searches there; Enter ends the cluster, and all processes."""
    required("root on Linux", sys.platform == "linux" and os.geteuid() == 0)
    for program in PROGRAMS:
        required(program, shutil.which(program))
    with two_nodes(tmp_path) as (laptop, nodes):
        with ssh_cluster(laptop) as command:
            search = subprocess.run(typed(laptop, command), **PIPES, check=False, timeout=MOST_SECONDS)
            assert search.returncode == 0, search.stdout
            assert BEST in search.stdout
            assert "processes=2 threads=2" in search.stdout
            assert all(node.run("pgrep --uid alice --full distributed") for node in nodes)
        for node in nodes:
            wait_for(lambda node=node: node.run("pgrep --uid alice --list-full || true") == "")
