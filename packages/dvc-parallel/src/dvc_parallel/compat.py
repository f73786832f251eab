"""Private interfaces of DVC for the individual steps of `dvc repro`."""

# ruff: noqa: F401
from operator import attrgetter

from dvc.dependency import RepoDependency
from dvc.dependency.db import AbstractDependency
from dvc.dvcfile import PROJECT_FILE, Lockfile, ProjectFile
from dvc.exceptions import DvcException
from dvc.lock import LockError
from dvc.repo import Repo, lock_repo
from dvc.repo.reproduce import collect_stages, get_active_graph, plan_repro  # select and sort stages
from dvc.rwlock import RWLOCK_FILE, RWLockFileCorruptedError, RWLockFileFormatError, rwlock  # DVC's read/write locks
from dvc.stage import Stage
from dvc.stage.cache import RunCacheNotFoundError
from dvc.stage.run import _enforce_cmd_list as split_commands  # shell, folder and environment of commands
from dvc.stage.run import _make_cmd as shell_words
from dvc.stage.run import get_executable, prepare_kwargs
from dvc.stage.serialize import to_lockfile  # returns a stage's lock file entry
from dvc.utils.serialize import dumps_yaml, modify_yaml  # edit a copy, to replace dvc.lock atomically

lock_file = attrgetter("dvcfile._lockfile")  # the Lockfile of a stage
