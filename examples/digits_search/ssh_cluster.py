"""Start a Dask cluster on the machines of hosts.txt by SSH, the scheduler on the first; Enter ends it."""

from pathlib import Path

import dask
from distributed import Client, SSHCluster

PYTHON = "digits_search/.venv/bin/python"  # on each machine, below the user's home
hosts = Path(__file__).with_name("hosts.txt").read_text().split()
options = {"scheduler_options": {"port": 8786}, "worker_options": {"nthreads": 1}}
# The machines get this configuration: without the key of a cluster here, and with a folder that others cannot write.
keys = ("ca-file", "client.cert", "scheduler.cert", "worker.cert")
dask.config.set({f"distributed.comm.tls.{key}": None for key in keys} | {"temporary-directory": "digits_search"})
with SSHCluster(hosts, remote_python=PYTHON, **options) as cluster, Client(cluster) as client:
    print(f"python search.py --cluster {cluster.scheduler_address}", flush=True)
    try:
        input("Enter ends the cluster.\n")
    finally:
        client.shutdown()  # also the processes on the machines, and before the connections are closed
