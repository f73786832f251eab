"""Notebooks on workers that are SLURM jobs, on two local nodes that do not see the login node's folder."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import dask
import nbformat
import papermill
import pytest
from hosts import notebook
from papermill_dask import WorkerLost, run_many
from programs import end, wait_for

pytestmark = [pytest.mark.soak, pytest.mark.privileged, pytest.mark.timeout(900)]
PROGRAMS = ("slurmctld", "slurmd", "sbatch", "scancel", "squeue", "munged")
NODES = ("n1", "n2")
CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdSpoolDir={folder}/spool-%n
SlurmdPidFile={folder}/slurmd-%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
KillWait=5
ReturnToService=2
NodeName={nodes} NodeHostname={host} NodeAddr=127.0.0.1 Port=[{first}-{last}] CPUs={cpus} RealMemory=2000
PartitionName=work Nodes={nodes} Default=YES State=UP
"""


@pytest.fixture(scope="module")
def login(tmp_path_factory):
    """The folder of a login node, where `sbatch` works; it is hidden on the nodes by an empty one."""
    if missing := [program for program in PROGRAMS if not shutil.which(program)]:
        # `.ci/run soak` installs SLURM.
        stop = pytest.fail if os.environ.get("WORKSHOP_REQUIRE_ALL") else pytest.skip
        stop(f"not installed: {', '.join(missing)} (Debian: slurmctld slurmd slurm-client munge)")
    folder = tmp_path_factory.mktemp("slurm")
    home = folder / "login"
    home.mkdir()
    (folder / "state").mkdir()
    (folder / "munge.key").write_bytes(secrets.token_bytes(1024))
    (folder / "munge.key").chmod(0o600)
    port = secrets.choice(range(20000, 30000, 4))
    (folder / "slurm.conf").write_text(
        CONFIGURATION.format(
            host=socket.gethostname(), folder=folder, port=port, first=port + 1, last=port + len(NODES),
            nodes=",".join(NODES), cpus=os.cpu_count(),
        )
    )  # fmt: skip
    munge = ["munged", "--foreground", "--force", "--num-threads=2", f"--socket={folder}/munge.socket"]
    munge += [f"--{name}-file={folder}/munge.{name}" for name in ("key", "pid", "log", "seed")]
    hidden = ["unshare", "--mount", "sh", "-ec", 'mount -t tmpfs none "$0"; exec slurmd -D -N "$1"', str(home)]
    with (
        (folder / "slurm.log").open("w") as log, contextlib.ExitStack() as stack, pytest.MonkeyPatch.context() as patch,
    ):  # fmt: skip
        patch.setenv("SLURM_CONF", f"{folder}/slurm.conf")
        patch.chdir(home)
        for command in (munge, ["slurmctld", "-D"], *([*hidden, node] for node in NODES)):
            server = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
            stack.callback(end, server)
            if command is munge:
                wait_for((folder / "munge.socket").exists)
        wait_for(lambda: states() == ["idle"] * len(NODES), 60, f"the nodes: {folder}/slurm.log")
        yield home
        wait_for(lambda: not jobs(), 60, "the jobs to end")


def output_words(*command: str) -> list[str]:
    """Return the words that a SLURM command prints."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.split()


def states():
    """Return the state of each node."""
    return output_words("sinfo", "--noheader", "--Node", "--format=%T")


def jobs():
    """Return the ids of unfinished jobs."""
    return output_words("squeue", "--noheader", "--format=%i")


def options(home: Path) -> dict:
    """Return the options of a cluster whose workers are jobs."""
    return {
        "cores": 1, "processes": 1, "memory": "900MB", "python": sys.executable, "interface": "lo",
        "log_directory": str(home.parent), "local_directory": "/tmp", "job_directives_skip": ["--mem"],
        "worker_extra_args": ["--resources", "notebook=1", "--preload", "papermill_dask.preload"],
        "scheduler_options": {"dashboard_address": "127.0.0.1:0"},
    }  # fmt: skip


@contextlib.contextmanager
def new_cluster(home: Path, n_jobs: int, walltime: str = "00:10:00"):
    """Start a Dask cluster whose workers are jobs, as in the README; set its address in Dask's configuration."""
    from dask_jobqueue import SLURMCluster

    with (
        SLURMCluster(**options(home), walltime=walltime) as cluster,
        dask.config.set({"scheduler-address": cluster.scheduler_address}),
    ):
        cluster.scale(jobs=n_jobs)
        cluster.wait_for_workers(n_jobs)
        yield cluster


def test_sweep_of_twenty_notebooks(login):
    """The dependency is sent to nodes that do not see the folder, and all executed notebooks are saved."""
    (login / "data.txt").write_text("42")
    source = (
        "import os\nfrom pathlib import Path\nprint(n * int(Path('data.txt').read_text()), os.environ['SLURM_JOB_ID'])"
    )
    notebook(login / "sweep.ipynb", "# tags: parameters\nn = 0", source, papermill_dask={"deps": ["data.txt"]})
    with new_cluster(login, n_jobs=2):
        sweep = run_many(Path("sweep.ipynb"), [{"n": n} for n in range(20)])
    assert sweep.exit_code == 0
    printed = [
        nbformat.read(login / f"executed/sweep/sweep-{n}.ipynb", 4).cells[-1].outputs[0].text.split()
        for n in range(1, 21)
    ]
    assert [int(product) for product, _ in printed] == [42 * n for n in range(20)]
    assert len({job for _, job in printed}) == 2


def test_cancelled_job_is_a_lost_worker(login):
    """After `scancel`, a notebook with a retry runs again in another job, and its out is fetched."""
    source = """import os, time
from pathlib import Path
Path('out.txt').write_text(os.environ['SLURM_JOB_ID'])
print(os.environ['SLURM_JOB_ID'], flush=True)
time.sleep(20)"""
    notebook(login / "long.ipynb", source, papermill_dask={"outs": ["out.txt"], "retries": 1})
    command = ["papermill", "long.ipynb", "done.ipynb", "--engine", "dask", "--autosave-cell-every", "1"]
    with new_cluster(login, n_jobs=2) as cluster:
        environment = os.environ | {"DASK_SCHEDULER_ADDRESS": cluster.scheduler_address}
        client = subprocess.Popen([Path(sys.executable).parent / command[0], *command[1:]], env=environment, cwd=login)
        (job,) = wait_for(lambda: first_output(login / "done.ipynb"))
        assert output_words("scancel", job) == []
        assert client.wait(120) == 0
    (again,) = first_output(login / "done.ipynb")
    assert again != job
    assert (login / "out.txt").read_text() == again
    assert len(nbformat.read(login / "done.ipynb", 4).metadata.papermill_dask["lost"]) == 1


def first_output(file: Path) -> list[str]:
    """Return the words that the first cell has printed so far."""
    if not file.exists():
        return []
    cell = nbformat.read(file, 4).cells[0]
    return [word for output in cell.outputs for word in output.text.split()]


def test_time_limit_is_a_lost_worker(login):
    """A job that reaches its time limit is a lost worker; the saved notebook marks the running cell as failed."""
    notebook(login / "endless.ipynb", "print('begun', flush=True)", "import time\ntime.sleep(600)")
    with new_cluster(login, n_jobs=1, walltime="00:01:00"), pytest.raises(WorkerLost):
        papermill.execute_notebook("endless.ipynb", "ended.ipynb", engine_name="dask")
    saved = nbformat.read(login / "ended.ipynb", 4)
    assert [cell.metadata.papermill.status for cell in saved.cells if "papermill" in cell.metadata][-1] == "failed"
