"""The README's commands, run on laptops, with a server reached only over SSH."""

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


def stored_files(person: Person) -> list[str]:
    """Return all files in the store with their sizes."""
    return sorted(person.server.run(f"cd {STORE}; find . -type f -printf '%P %s\\n'").splitlines())


def set_parameter(person: Person, name: str, value: object) -> None:
    """Set a parameter in params.yaml."""
    person.run(f"sed -i 's/^  {name}: .*/  {name}: {value}/' params.yaml")


@contextlib.contextmanager
def restored(person: Person) -> Iterator[None]:
    """Restore the last commit on the laptop after a test."""
    try:
        yield
    finally:
        person.run(
            "ssh -O check posts || ssh -fN posts; git checkout --quiet . && git clean --quiet --force receipts results"
        )
    assert "up to date" in person.run("dvc status")


def test_metrics_and_curves_are_on_the_laptop(session):
    """`dvc repro` transfers them, `dvc metrics show` and `diff` print them, `dvc plots show` draws them."""
    results = session.alice.laptop.path(f"{HOME}/results")
    metrics = json.loads((results / "metrics.json").read_text())
    assert 0.95 < metrics["roc_auc"] < metrics["train_roc_auc"]
    assert len((results / "roc.csv").read_text().splitlines()) > 50
    assert "roc_auc" in session.outputs["look"]
    assert "dvc_plots/index.html" in session.outputs["look"]
    assert "Stage 'featurization' didn't change" in session.outputs["look"]


def test_data_stays_on_the_server(session):
    """Less than a fifth of Posts.xml goes over the link, and no file on the laptop contains a post."""
    size = session.receipt("xml")["size"]
    print(f"Posts.xml {size}, over the link {session.bytes_on_link}")
    assert session.bytes_on_link < size / 5
    post = session.alice.server.run(f"sed -n 1000p {session.receipt('tsv')['path']}")[-80:].strip()
    assert len(post) > 70
    files = session.alice.laptop.run(f"grep -r --files-with-matches --fixed-strings '{post}' /home /tmp || true")
    assert files == ""


def test_mlflow_has_a_run_per_pipeline_with_nested_stages(session):
    """The server's MLflow has a run for each of the two models, with nested runs of the stages and a figure."""
    last = "train_model evaluate promote evaluation.png mlflow_gate"
    assert session.outputs["mlflow"].splitlines() == [
        f"forest FINISHED True xml_to_tsv split_train_test featurization {last}",
        f"linear FINISHED True {last}",
    ]


def test_better_model_is_promoted_once(session):
    """The linear model beats the forest; a second run finds it already in production."""
    alice = session.alice
    forest = json.loads(alice.run("git show HEAD~1:./results/decision.json"))
    assert forest["reason"] == "promoted: all rules passed, and nothing was in production yet"
    assert "this working tree's decision: promoted" in session.outputs["look"]
    with restored(alice):
        alice.run("dvc repro --force -s promote")
        again = json.loads(alice.laptop.path(f"{HOME}/results/decision.json").read_text())
    assert (again["promoted"], again["production"]["version"]) == (True, "2")
    assert again["reason"].startswith("already in production")
    assert len(json.loads(alice.run("mlflow-gate history posts_over_ssh --json"))) == 2


def test_old_commit_is_restored_with_stock_dvc(session):
    """After `git checkout` of the forest's commit all stages are up to date."""
    alice = session.alice
    assert "up to date" in alice.run("git checkout --quiet HEAD~1; dvc status")
    assert "roc_auc" in alice.run("dvc metrics show; git checkout --quiet -")


def test_check_names_a_missing_file(session):
    """DVC checks only receipts; `receipts.py check` asks the server, and names the file and the stage to force."""
    alice, receipt = session.alice, session.receipt("model")
    assert "8 of 8 files" in alice.run("python receipts.py check")
    alice.server.run(f"mv {receipt['path']} {receipt['path']}.away")
    assert "up to date" in alice.run("dvc status")
    output = alice.run("python receipts.py check", fails=True)
    alice.server.run(f"mv {receipt['path']}.away {receipt['path']}")
    assert f"{receipt['path']} cannot be read" in output
    assert "dvc repro --force -s train_model" in output


def test_second_person_reuses_the_files(session, people):
    """After a pull nothing runs for Bob; with another parameter only later stages run, on Alice's files."""
    _, bob = people
    bob.install()
    bob.run(blocks("Run it")[0].replace("dvc repro", "true"))
    before = stored_files(bob)
    assert "up to date" in bob.run(blocks("Two people on one server")[1])
    assert stored_files(bob) == before
    set_parameter(bob, "model", "forest")
    set_parameter(bob, "n_estimators", 10)
    output = bob.run("dvc repro")
    assert "Running stage 'train_model'" in output
    assert "Running stage 'featurization'" not in output
    new = set(stored_files(bob)) - set(before)
    assert [bob.server.run(f"stat -c %U:%G:%a {STORE}/{line.split()[0]}").strip() for line in new] == ["bob:posts:444"]


def test_lost_connection_stops_the_notebook(session):
    """The connection is killed during a stage: a clear error, no process left on the server; `dvc repro` continues."""
    alice = session.alice
    with restored(alice):
        set_parameter(alice, "model", "forest")
        set_parameter(alice, "n_estimators", 100000)
        executed = alice.laptop.path(f"{HOME}/executed/train_model.ipynb")
        executed.unlink()
        repro = alice.start("dvc repro")
        wait_for(lambda: executed.exists() and is_training(executed), 120)
        assert kernel_folders(alice)
        alice.run("kill -9 $(ssh -O check posts 2>&1 | grep --only-matching '[0-9]*')")
        output, _ = repro.communicate(timeout=120)
        assert repro.returncode != 0
        assert "The Dask scheduler was lost" in output
        wait_for(lambda: not kernel_folders(alice), 60)
        set_parameter(alice, "n_estimators", 5)
        output = alice.run("ssh -fN posts; dvc repro")
        assert "Stage 'featurization' didn't change" in output
        assert "Running stage 'train_model'" in output


def kernel_folders(person: Person) -> str:
    """Return the working folders of a person's kernels on the server."""
    script = (
        f"for pid in $(pgrep -u {person.name}); do readlink /proc/$pid/cwd; done | grep papermill-dask/scratch || true"
    )
    return person.server.run(script)


def is_training(notebook: Path) -> bool:
    """Return whether the training cell is running."""
    with contextlib.suppress(ValueError):
        cells = json.loads(notebook.read_text())["cells"]
        return any("fit(" in "".join(c["source"]) and c["metadata"]["papermill"]["status"] == "running" for c in cells)
    return False


def test_changed_host_key_is_refused(session):
    """OpenSSH refuses a changed key; after the README's commands, with the new fingerprint, it connects."""
    alice = session.alice
    alice.run("ssh -O exit posts")
    start_ssh(alice.server)
    with restored(alice):
        assert "REMOTE HOST IDENTIFICATION HAS CHANGED" in alice.run("ssh -fN posts", fails=True)
        refused = alice.run("dvc repro --force -s evaluate", fails=True)
        assert "127.0.0.1:8786" in refused
        alice.receive_fingerprint()
        alice.run(blocks("What breaks, and what you see")[0])
        alice.run("ssh -O check posts")


def test_full_disk_leaves_no_partial_file(session):
    """With a full disk the stage fails with that message and leaves no partial file; the next run succeeds."""
    alice, before = session.alice, stored_files(session.alice)
    with restored(alice):
        alice.server.run("head --bytes 1G /dev/zero > /scratch/ballast || true")
        output = alice.run("dvc repro --force -s featurization", fails=True)
        alice.server.run("rm /scratch/ballast")
        assert f"The disk of {STORE} is full" in output
        assert stored_files(alice) == before
        alice.run("dvc repro --force -s featurization && dvc repro")
        assert stored_files(alice) == before
