"""The README's commands, typed on laptops, with a server that they reach by SSH alone."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from people import FOLDER, STORE, Person, blocks, start_ssh
from workplace import wait_for

pytestmark = pytest.mark.privileged
HOME = f"/home/alice/{FOLDER}"


def stored(person: Person) -> list[str]:
    """Return all files in the store, each with its size."""
    return sorted(person.server.run(f"cd {STORE}; find . -type f -printf '%P %s\\n'").splitlines())


def set_parameter(person: Person, name: str, value: object) -> None:
    """Change a line of params.yaml."""
    person.types(f"sed -i 's/^  {name}: .*/  {name}: {value}/' params.yaml")


@contextlib.contextmanager
def unchanged(person: Person) -> Iterator[None]:
    """Put back what a test changes on the laptop: the last commit, with nothing to make."""
    try:
        yield
    finally:
        person.types(
            "ssh -O check posts || ssh -fN posts; git checkout --quiet . && git clean --quiet --force receipts results"
        )
    assert "up to date" in person.types("dvc status")


def test_metrics_and_curves_are_on_the_laptop(typed):
    """`dvc repro` brings them, `dvc metrics show` and `diff` print them, `dvc plots show` draws them."""
    results = typed.alice.laptop.path(f"{HOME}/results")
    metrics = json.loads((results / "metrics.json").read_text())
    assert 0.95 < metrics["roc_auc"] < metrics["train_roc_auc"]
    assert len((results / "roc.csv").read_text().splitlines()) > 50
    assert "roc_auc" in typed.printed["look"]
    assert "dvc_plots/index.html" in typed.printed["look"]
    assert "Stage 'featurization' didn't change" in typed.printed["look"]


def test_data_stays_on_the_server(typed):
    """Less than a fifth of Posts.xml goes over the link, and no file of the laptop holds a post."""
    size = typed.receipt("xml")["size"]
    print(f"Posts.xml {size}, over the link {typed.bytes_on_link}")
    assert typed.bytes_on_link < size / 5
    post = typed.alice.server.run(f"sed -n 1000p {typed.receipt('tsv')['path']}")[-80:].strip()
    assert len(post) > 70
    files = typed.alice.laptop.run(f"grep --recursive --files-with-matches --fixed-strings '{post}' /home /tmp || true")
    assert files == ""


def test_mlflow_has_one_run_a_pipeline_with_nested_stages(typed):
    """The server's MLflow has a run for each of the two models, and in it those of the stages, with a figure."""
    last = "train_model evaluate promote evaluation.png mlflow_gate"
    assert typed.printed["mlflow"].splitlines() == [
        f"forest FINISHED True xml_to_tsv split_train_test featurization {last}",
        f"linear FINISHED True {last}",
    ]


def test_better_model_is_promoted_and_the_same_again_stays(typed):
    """The forest came first, the linear model beat it, and again it is already in production."""
    alice = typed.alice
    forest = json.loads(alice.types("git show HEAD~1:./results/decision.json"))
    assert forest["reason"] == "promoted: all rules passed, nothing was in production yet"
    assert "this tree's decision: promoted" in typed.printed["look"]
    with unchanged(alice):
        alice.types("dvc repro --force -s promote")
        again = json.loads(alice.laptop.path(f"{HOME}/results/decision.json").read_text())
    assert (again["promoted"], again["production"]["version"]) == (True, "2")
    assert again["reason"].startswith("already in production")
    assert len(json.loads(alice.types("mlflow-gate history posts_over_ssh --json"))) == 2


def test_old_commit_is_back_with_stock_dvc(typed):
    """After `git checkout` of the forest's commit nothing is to be made."""
    alice = typed.alice
    assert "up to date" in alice.types("git checkout --quiet HEAD~1; dvc status")
    assert "roc_auc" in alice.types("dvc metrics show; git checkout --quiet -")


def test_kept_file_that_is_gone_is_named(typed):
    """DVC sees the receipts alone; `receipts.py check` asks the server, and names the file and the stage to force."""
    alice, receipt = typed.alice, typed.receipt("model")
    assert "8 of 8 files" in alice.types("python receipts.py check")
    alice.server.run(f"mv {receipt['path']} {receipt['path']}.away")
    assert "up to date" in alice.types("dvc status")
    printed = alice.types("python receipts.py check", fails=True)
    alice.server.run(f"mv {receipt['path']}.away {receipt['path']}")
    assert f"{receipt['path']} cannot be read" in printed
    assert "dvc repro --force -s train_model" in printed


def test_second_person_makes_nothing_again(typed, people):
    """Bob pulls, and nothing runs; with another parameter two stages run, with the files that Alice's stages made."""
    _, bob = people
    bob.installs()
    bob.types(blocks("Run it")[0].replace("dvc repro", "true"))
    before = stored(bob)
    assert "up to date" in bob.types(blocks("Two people on one server")[1])
    assert stored(bob) == before
    set_parameter(bob, "model", "forest")
    set_parameter(bob, "n_estimators", 10)
    printed = bob.types("dvc repro")
    assert "Running stage 'train_model'" in printed
    assert "Running stage 'featurization'" not in printed
    new = set(stored(bob)) - set(before)
    assert [bob.server.run(f"stat -c %U:%G:%a {STORE}/{line.split()[0]}").strip() for line in new] == ["bob:posts:444"]


def test_link_that_breaks_stops_the_notebook(typed):
    """The connection is killed in mid-stage: a clear error, nothing left on the server; `dvc repro` continues."""
    alice = typed.alice
    with unchanged(alice):
        set_parameter(alice, "model", "forest")
        set_parameter(alice, "n_estimators", 100000)
        executed = alice.laptop.path(f"{HOME}/executed/train_model.ipynb")
        executed.unlink()
        repro = alice.starts("dvc repro")
        wait_for(lambda: executed.exists() and cell_runs(executed), 120)
        assert kernels(alice)
        alice.types("kill -9 $(ssh -O check posts 2>&1 | grep --only-matching '[0-9]*')")
        printed, _ = repro.communicate(timeout=120)
        assert repro.returncode != 0
        assert "The Dask scheduler was lost" in printed
        wait_for(lambda: not kernels(alice), 60)
        set_parameter(alice, "n_estimators", 5)
        printed = alice.types("ssh -fN posts; dvc repro")
        assert "Stage 'featurization' didn't change" in printed
        assert "Running stage 'train_model'" in printed


def kernels(person: Person) -> str:
    """Return the folders of processes that run a notebook for a person on the server."""
    script = (
        f"for pid in $(pgrep -u {person.name}); do readlink /proc/$pid/cwd; done | grep papermill-dask/scratch || true"
    )
    return person.server.run(script)


def cell_runs(notebook: Path) -> bool:
    """Tell whether the cell that trains runs."""
    with contextlib.suppress(ValueError):
        cells = json.loads(notebook.read_text())["cells"]
        return any("fit(" in "".join(c["source"]) and c["metadata"]["papermill"]["status"] == "running" for c in cells)
    return False


def test_changed_host_key_is_refused(typed):
    """OpenSSH refuses a server with another key; after the README's commands, with the new fingerprint, it connects."""
    alice = typed.alice
    alice.types("ssh -O exit posts")
    start_ssh(alice.server)
    with unchanged(alice):
        assert "REMOTE HOST IDENTIFICATION HAS CHANGED" in alice.types("ssh -fN posts", fails=True)
        refused = alice.types("dvc repro --force -s evaluate", fails=True)
        assert "127.0.0.1:8786" in refused
        alice.learns_fingerprint()
        alice.types(blocks("What breaks, and what you see")[0])
        alice.types("ssh -O check posts")


def test_full_disk_keeps_nothing_half(typed):
    """A stage that finds the store's disk full fails and says so; nothing half-written stays; the next run succeeds."""
    alice, before = typed.alice, stored(typed.alice)
    with unchanged(alice):
        alice.server.run("head --bytes 1G /dev/zero > /scratch/ballast || true")
        printed = alice.types("dvc repro --force -s featurization", fails=True)
        alice.server.run("rm /scratch/ballast")
        assert f"The disk of {STORE} is full" in printed
        assert stored(alice) == before
        alice.types("dvc repro --force -s featurization && dvc repro")
        assert stored(alice) == before
