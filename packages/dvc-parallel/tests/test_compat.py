"""What is used of DVC beyond its public interface is as `compat.py` expects it."""

from __future__ import annotations

import inspect
import runpy

import pytest
from dvc_parallel import compat

EXPECTED = {
    "collect_stages": ["repo", "targets", "recursive", "glob"],
    "get_active_graph": ["graph"],
    "plan_repro": ["graph", "stages", "pipeline", "downstream"],
    "lock_repo": ["repo"],
    "rwlock": ["tmp_dir", "fs", "cmd", "read", "write", "hardlink"],
    "split_commands": ["cmd"],
    "shell_words": ["executable", "cmd"],
    "get_executable": [],
    "prepare_kwargs": ["stage", "run_env"],
    "modify_yaml": ["path", "fs"],
    "dumps_yaml": ["d"],
}
STAGE = ["changed", "commit", "dump", "remove_outs", "reproduce", "save", "save_deps"]


@pytest.mark.parametrize("name", EXPECTED)
def test_function_takes_what_we_give(name):
    """A function of DVC's has the parameters that are passed to it."""
    parameters = list(inspect.signature(getattr(compat, name)).parameters)
    assert parameters == EXPECTED[name], (
        f"dvc: {name}{parameters} was {EXPECTED[name]}; see where compat.{name} is used"
    )


def test_stage_and_repository_have_what_we_call():
    """So have a stage, the repository, the lock file and the run cache."""
    from dvc.repo.scm_context import SCMContext
    from dvc.stage import PipelineStage
    from dvc.stage.cache import StageCache

    missing = [f"Stage.{name}" for name in STAGE if not callable(getattr(PipelineStage, name, None))]
    missing += [f"Repo.{name}" for name in ["scm_context"] if not hasattr(compat.Repo, name)]
    assert not missing, f"dvc has no {missing} any more; see pipeline.py"
    assert "run_cache" in inspect.signature(StageCache.restore).parameters
    assert "run_cache" in inspect.signature(PipelineStage.save).parameters
    assert "quiet" in inspect.signature(SCMContext.__call__).parameters
    for name in ("_lockfile", "lockfile_contents"):
        assert hasattr(compat.ProjectFile, name), f"dvc: ProjectFile has no {name} any more; see Pipeline._dump"


def test_python_runs_modules_by_the_function_that_is_used():
    """`python -m` runs `runpy._run_module_as_main` with the name of the module; so does `runner.py`."""
    assert next(iter(inspect.signature(runpy._run_module_as_main).parameters)) == "mod_name"
