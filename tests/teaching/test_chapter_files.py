"""A reset restores a chapter's original files, keeps the attendee's, and changes nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from attendee import git, new_repository
from click.testing import CliRunner
from workplace import clean_environment, environment_of

from workshop.cli import main
from workshop.settings import Settings
from workshop.teaching import chapter_files
from workshop.teaching.chapter_files import ResetError

CHAPTER_1 = ["1_starting_point/README.md", "1_starting_point/model_rf.ipynb", "1_starting_point/report/make_report.py"]
CHAPTER_2 = ["2_tracking/README.md", "2_tracking/model_rf.ipynb"]
CHAPTER_4 = [
    "4_pipeline/params.yaml", "4_pipeline/dvc.yaml", "4_pipeline/dvc.lock", "4_pipeline/data/.gitignore",
    "4_pipeline/results/.gitignore", "4_pipeline/executed/.gitignore", "4_pipeline/own/.gitignore",
    "4_pipeline/own/README.md", "4_pipeline/train_rf.ipynb",
]  # fmt: skip


@pytest.fixture
def root(tmp_path):
    """A freshly cloned repository that commands use."""
    root = new_repository(tmp_path / "clone", "1_starting_point/.gitignore", *CHAPTER_1, *CHAPTER_2, *CHAPTER_4)
    with environment_of(
        clean_environment() | {"WORKSHOP_ROOT": str(root), "MLFLOW_TRACKING_URI": "http://127.0.0.1:9"}
    ):
        yield root


def restore_chapter(number: int = 1) -> Path:
    """Reset a chapter and return the folder of the copies."""
    settings = Settings()
    return chapter_files.restore_chapter(settings, number, chapter_files.find_start(settings.root))


def contents(folder: Path) -> dict[str, bytes | str]:
    """Return the content of each file below a folder, and the target of each link."""
    return {
        path.relative_to(folder).as_posix(): str(path.readlink()) if path.is_symlink() else path.read_bytes()
        for path in folder.rglob("*")
        if path.is_symlink() or path.is_file()
    }


def everything(root: Path) -> dict[str, bytes | str]:
    """Return the content of the repository without `.git`."""
    return {name: content for name, content in contents(root).items() if not name.startswith(".git/")}


def test_changed_deleted_renamed_and_own_files(root):
    """Changed, deleted and renamed files are as cloned; copies are kept; other chapters are untouched."""
    before = everything(root)
    folder = root / "1_starting_point"
    (folder / "README.md").write_text("mine\n")
    (folder / "model_rf.ipynb").rename(folder / "model_forest.ipynb")
    (folder / "report" / "make_report.py").unlink()
    (folder / "germany.csv").write_text("table\n")  # ignored by git
    (folder / "raw_data").mkdir()
    (folder / "raw_data" / "weather.csv").write_text("raw\n")
    (root / "2_tracking" / "README.md").write_text("changed, too\n")
    kept = restore_chapter(1)
    assert kept.parent == root / "server" / "state" / "kept"
    assert contents(kept) == {
        ".gitignore": before["1_starting_point/.gitignore"],
        "README.md": b"mine\n",
        "model_forest.ipynb": before["1_starting_point/model_rf.ipynb"],
        "germany.csv": b"table\n",
        "raw_data/weather.csv": b"raw\n",
    }
    after = {name: content for name, content in everything(root).items() if not name.startswith("server/state/")}
    assert after == before | {"2_tracking/README.md": b"changed, too\n"}
    assert not (folder / "raw_data").exists()


def test_links_are_moved_and_never_followed(root, tmp_path):
    """A link in place of a file or folder is moved as a link; its target does not change."""
    folder = root / "1_starting_point"
    outside = tmp_path / "outside"
    (outside / "report").mkdir(parents=True)
    (outside / "report" / "make_report.py").write_text("precious\n")
    (outside / "notes").write_text("precious\n")
    before = contents(folder)
    (folder / "README.md").unlink()
    (folder / "README.md").symlink_to(outside / "notes")
    (folder / "report" / "make_report.py").unlink()
    (folder / "report").rmdir()
    (folder / "report").symlink_to(outside / "report")
    (folder / "broken").symlink_to("nowhere")
    kept = restore_chapter(1)
    assert contents(folder) == before
    assert not (folder / "report").is_symlink()
    assert set(contents(outside).values()) == {b"precious\n"}
    assert {path.name for path in kept.iterdir() if path.is_symlink()} == {"README.md", "report", "broken"}


def test_what_is_staged_and_committed_stays(root):
    """The attendee's own commits are not the original, and neither they nor the index change."""
    git(root, "branch", "given")
    git(root, "branch", "--set-upstream-to=given")
    before = contents(root / "1_starting_point")
    (root / "1_starting_point" / "README.md").write_text("committed\n")
    git(root, "commit", "--quiet", "--all", "--message", "Mine")
    (root / "1_starting_point" / "model_rf.ipynb").write_text("staged\n")
    git(root, "add", "--all")
    head, staged = git(root, "rev-parse", "HEAD"), git(root, "ls-files", "--stage")
    kept = restore_chapter(1)
    assert contents(root / "1_starting_point") == before
    assert contents(kept).items() >= {"README.md": b"committed\n", "model_rf.ipynb": b"staged\n"}.items()
    assert (git(root, "rev-parse", "HEAD"), git(root, "ls-files", "--stage")) == (head, staged)


def test_local_branch_starts_where_it_left_the_origin(root, tmp_path):
    """A branch without an upstream is compared with the origin's branch."""
    git(tmp_path, "clone", "--quiet", str(root), "mine")
    clone = tmp_path / "mine"
    git(clone, "switch", "--quiet", "--create", "trial")
    (clone / "1_starting_point" / "README.md").write_text("committed\n")
    git(clone, "commit", "--quiet", "--all", "--message", "Mine")
    assert chapter_files.find_start(clone) == git(root, "rev-parse", "HEAD").strip()


def test_outputs_of_the_pipeline_are_kept(root):
    """In chapter 4, parameters, notebooks and own data are restored; DVC's outputs are kept."""
    folder = root / "4_pipeline"
    text = (folder / "params.yaml").read_bytes()
    made = ["data/train.parquet", "results/report.html", "executed/train_rf.ipynb", "dvc.lock"]
    for name in made:
        (folder / name).write_text("made\n")
    aside = [root / ".dvc" / "cache" / "files" / "x", root / "server" / "state" / "mlflow.db"]
    for file in aside:
        file.parent.mkdir(parents=True)
        file.write_text("made\n")
    (folder / "params.yaml").write_text("mine\n")
    (folder / "own" / "plant.csv").write_text("mine\n")
    (folder / "data" / ".gitignore").unlink()
    kept = restore_chapter(4)
    assert contents(kept).items() >= {"params.yaml": b"mine\n", "own/plant.csv": b"mine\n"}.items()
    assert (folder / "params.yaml").read_bytes() == text
    assert (folder / "data" / ".gitignore").exists()
    assert {(folder / name).read_text() for name in made} == {file.read_text() for file in aside} == {"made\n"}


def test_kept_folders_contain_all_outputs_of_the_pipeline():
    """Every output declared by the pipeline is in a folder that a reset keeps."""
    import yaml
    from workplace import ROOT

    stages = yaml.safe_load((ROOT / "4_pipeline" / "dvc.yaml").read_text())["stages"]
    declared = [stage[kind] for stage in stages.values() for kind in ("outs", "metrics", "plots") if kind in stage]
    paths = [next(iter(out)) if isinstance(out, dict) else out for outs in declared for out in outs]
    assert {path.split("/")[0] for path in paths} <= set(chapter_files.PIPELINE_OUTPUTS)


def test_exercises_of_the_chapter_count_as_unsolved(root):
    """Exercises of the other chapters remain solved."""
    state = root / "server" / "state"
    state.mkdir(parents=True)
    (state / "exercises.json").write_text(json.dumps({"1.1": "now", "2.1": "now"}))
    restore_chapter(1)
    assert set(json.loads((state / "exercises.json").read_text())) == {"2.1"}


def test_command_asks_first(root):
    """Without confirmation nothing changes; with it the command prints the folder of the copies."""
    file = root / "2_tracking" / "README.md"
    file.write_text("mine\n")
    before = everything(root)
    done = CliRunner().invoke(main, ["reset", "2"], input="n\n")
    assert done.exit_code == 1
    assert everything(root) == before
    done = CliRunner().invoke(main, ["reset", "2"], input="y\n")
    assert done.exit_code == 0, done.output
    assert "your files are in" in done.output
    assert "Reload Notebook from Disk" in done.output
    assert file.read_text() != "mine\n"


def test_folder_without_git_is_refused_in_words(tmp_path, monkeypatch):
    """The original files are unknown, so nothing is moved."""
    folder = tmp_path / "unpacked" / "1_starting_point"
    folder.mkdir(parents=True)
    (folder / "README.md").write_text("mine\n")
    settings = Settings(root=folder.parent, state=tmp_path / "state")
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    with pytest.raises(ResetError, match="original files cannot be restored"):
        chapter_files.find_start(settings.root)
    assert (folder / "README.md").read_text() == "mine\n"


def test_kept_folder_that_cannot_be_made_stops_before_anything_changes(root):
    """A file at the folder's path is reported, and the attendee's file is unchanged."""
    state = root / "server" / "state"
    state.mkdir(parents=True)
    (state / "kept").write_text("in the way")
    (root / "1_starting_point" / "README.md").write_text("mine\n")
    with pytest.raises(ResetError, match="could not be restored"):
        restore_chapter(1)
    assert (root / "1_starting_point" / "README.md").read_text() == "mine\n"
