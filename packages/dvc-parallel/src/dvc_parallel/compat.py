"""Private interfaces of DVC, which do the steps of `dvc repro` one by one."""

# ruff: noqa: F401
from operator import attrgetter

from dvc.dependency import RepoDependency
from dvc.dependency.db import AbstractDependency
from dvc.dvcfile import PROJECT_FILE, Lockfile, ProjectFile
from dvc.exceptions import DvcException
from dvc.lock import LockError
from dvc.repo import Repo, lock_repo
from dvc.repo.reproduce import collect_stages, get_active_graph, plan_repro  # which stages, and their order
from dvc.rwlock import RWLOCK_FILE, RWLockFileCorruptedError, RWLockFileFormatError, rwlock  # the table of files in use
from dvc.stage import Stage
from dvc.stage.cache import RunCacheNotFoundError
from dvc.stage.run import _enforce_cmd_list as split_commands  # how DVC starts commands: shell, folder, environment
from dvc.stage.run import _make_cmd as shell_words
from dvc.stage.run import get_executable, prepare_kwargs
from dvc.stage.serialize import to_lockfile  # what the lock file says of a stage
from dvc.utils.serialize import dumps_yaml, modify_yaml  # DVC writes the lock file in place, we beside it

lock_file = attrgetter("dvcfile._lockfile")  # of a stage: its Lockfile
