"""A server with SSH and two accounts, two laptops, and the README typed on one of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from people import FOLDER, Person, alice_and_bob, blocks
from workplace import pytest_runtest_setup  # noqa: F401 - a hook


@pytest.fixture(scope="session")
def people(tmp_path_factory) -> Iterator[tuple[Person, Person]]:
    """Alice and Bob, with the packages that are installed here."""
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
class Typed:
    """What the README's commands printed, and what went over the link meanwhile."""

    alice: Person
    printed: dict[str, str]
    bytes_on_link: int

    def receipt(self, name: str) -> dict:
        """Return a receipt on Alice's laptop."""
        return json.loads(self.alice.laptop.path(f"/home/alice/{FOLDER}/receipts/{name}.json").read_text())


@pytest.fixture(scope="session")
def typed(people) -> Typed:
    """Alice types the README from the top, up to the linear model, and pushes."""
    alice, _ = people
    printed = {"install": alice.installs()}
    before = alice.laptop.bytes_on_link()
    printed["run"] = alice.types(blocks("Run it")[0])
    sent = alice.laptop.bytes_on_link() - before
    printed["commit"] = alice.types(blocks("Run it")[1])
    printed["look"] = "".join(map(alice.types, blocks("Look at it")))
    printed["mlflow"] = alice.types(MLFLOW_RUNS)
    alice.types(blocks("Two people on one server")[0])
    return Typed(alice, printed, sent)
