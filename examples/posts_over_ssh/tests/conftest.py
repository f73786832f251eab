"""A server with SSH and two accounts, two laptops, and the README's commands run on one of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from people import FOLDER, Person, alice_and_bob, blocks
from workplace import pytest_runtest_setup  # noqa: F401 - a hook


@pytest.fixture(scope="session")
def people(tmp_path_factory) -> Iterator[tuple[Person, Person]]:
    """Alice and Bob, with the packages of this environment."""
    with alice_and_bob(tmp_path_factory.mktemp("machines")) as people:
        yield people


MLFLOW_RUNS = """python - <<'END'
import mlflow
runs = mlflow.search_runs(experiment_names=["posts_over_ssh"], output_format="list", order_by=["start_time"])
for parent in runs:
    if "mlflow.parentRunId" not in parent.data.tags:
        nested = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
        print(parent.data.params["train_model.model"], parent.info.status, "roc_auc" in parent.data.metrics,
              *[run.info.run_name for run in nested],
              *[file.path for run in nested for file in mlflow.artifacts.list_artifacts(run_id=run.info.run_id)
                if file.path != "notebook"])
END"""


@dataclass
class Session:
    """The output of the README's commands, and the bytes sent over the link."""

    alice: Person
    outputs: dict[str, str]
    bytes_on_link: int

    def receipt(self, name: str) -> dict:
        """Return a receipt on Alice's laptop."""
        return json.loads(self.alice.laptop.path(f"/home/alice/{FOLDER}/receipts/{name}.json").read_text())


@pytest.fixture(scope="session")
def session(people) -> Session:
    """Alice runs the README's commands in order, up to the linear model, and pushes."""
    alice, _ = people
    outputs = {"install": alice.install()}
    before = alice.laptop.bytes_on_link()
    outputs["run"] = alice.run(blocks("Run it")[0])
    sent = alice.laptop.bytes_on_link() - before
    outputs["commit"] = alice.run(blocks("Run it")[1])
    outputs["look"] = "".join(map(alice.run, blocks("Look at it")))
    outputs["mlflow"] = alice.run(MLFLOW_RUNS)
    alice.run(blocks("Two people on one server")[0])
    return Session(alice, outputs, sent)
