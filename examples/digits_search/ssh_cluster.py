"""Start a Dask cluster over SSH on the machines in hosts.txt, with the scheduler on the first; Enter stops it."""

from pathlib import Path

import dask
from distributed import Client, SSHCluster

PYTHON = "digits_search/.venv/bin/python"  # on each machine, relative to the user's home
hosts = Path(__file__).with_name("hosts.txt").read_text().split()
options = {"scheduler_options": {"port": 8786}, "worker_options": {"nthreads": 1}}
# Dask sends its configuration to the machines: remove the paths of local TLS files; keep temporary files private.
keys = ("ca-file", "client.cert", "scheduler.cert", "worker.cert")
dask.config.set({f"distributed.comm.tls.{key}": None for key in keys} | {"temporary-directory": "digits_search"})
with SSHCluster(hosts, remote_python=PYTHON, **options) as cluster, Client(cluster) as client:
    print(f"python search.py --cluster {cluster.scheduler_address}", flush=True)
    try:
        input("Press Enter to stop the cluster.\n")
    finally:
        client.shutdown()  # stop the remote processes before the connections close
