"""The registry is followed beside the requests: new versions are taken over; after a failure the old one stays."""

from __future__ import annotations

import contextlib
import json
import math
import threading
from collections.abc import Callable, Iterator

import pytest
from dashboard import app, follower, layout
from dashboard.follower import Follower
from forecast import problem
from forecast.govern.gate import Registry
from forecast.table.features import features, targets
from forecast.tracking import connect
from mlflow.exceptions import MlflowException
from sklearn.linear_model import LinearRegression
from workplace import ROOT, wait_for

MOVE_SECONDS = 30.0  # 5 s on a quiet machine
MODEL = "a_model_that_is_followed"
ROW = {
    "utc_timestamp": "2016-06-01T12:00:00Z", "windspeed": 5.2, "temperature": 18.5, "rad_horizontal": 410,
    "rad_diffuse": 120,
}  # fmt: skip


class Versions:
    """A registered model of the tests' own, with a version of each of some logged models."""

    def __init__(self, sources: list[dict[str, str]]) -> None:
        self.client = connect()
        with contextlib.suppress(MlflowException):  # what a test that failed has left
            self.client.delete_registered_model(MODEL)
        self.client.create_registered_model(MODEL)
        self.numbers = [self.add(each["model_uri"], each["run_id"]) for each in sources]

    def add(self, source: str, run_id: str) -> str:
        """Register a version."""
        model_id = source.removeprefix("models:/") if source.startswith("models:/m-") else None
        return str(self.client.create_model_version(MODEL, source=source, run_id=run_id, model_id=model_id).version)

    def move(self, version: str) -> None:
        """Point the alias at a version."""
        self.client.set_registered_model_alias(MODEL, "production", version)


@pytest.fixture
def versions(in_workplace, monkeypatch) -> Iterator[Versions]:
    """Two versions that predict otherwise, the first one in production."""
    monkeypatch.setattr(problem, "REGISTERED_MODEL", MODEL)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")  # as the dashboard sets them for itself
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    results = in_workplace.pipeline / "results"
    stages = ("train_gradient_boosting", "train_linreg")
    versions = Versions([json.loads((results / f"{stage}.json").read_text()) for stage in stages])
    versions.move(versions.numbers[0])
    yield versions
    versions.client.delete_registered_model(MODEL)


@pytest.fixture
def followed(versions, data_file):
    """Return a follower that has polled once."""
    followed = Follower(data_file)
    followed.poll()
    assert followed.now.faults == {}
    assert followed.now.champion.production.version == versions.numbers[0]
    return followed


def _poll_until(condition: Callable[[], object], seconds: float, followed) -> None:
    """Poll as the follower does until it is as wanted."""
    wait_for(lambda: followed.poll() or condition(), seconds)


def test_two_dashboards_follow_the_alias_and_agree(versions, followed, data_file):
    """Within seconds of a move both answer as the other version, to the last digit; no request is lost meanwhile."""
    other = Follower(data_file)
    other.poll()
    clients = [app.make_app(each).server.test_client() for each in (followed, other)]
    before, revisions, answers, over = followed.now, followed.now.revision, [], threading.Event()

    def ask_on() -> None:
        while not over.is_set():
            answers.append(clients[0].post("/predict", json={"rows": [ROW]}))

    asking = threading.Thread(target=ask_on)
    asking.start()
    try:
        versions.move(versions.numbers[1])
        for each in (followed, other):
            _poll_until(
                lambda each=each: each.now.champion.production.version == versions.numbers[1], MOVE_SECONDS, each
            )
    finally:
        over.set()
        asking.join(30)
    assert {answer.status_code for answer in answers} == {200}
    assert {answer.get_json()["model"]["version"] for answer in answers} <= set(versions.numbers)
    answers = [client.post("/predict", json={"rows": [ROW]}).get_json() for client in clients]
    assert answers[0] == answers[1]
    assert answers[0]["model"]["version"] == versions.numbers[1]
    assert followed.now.revision != revisions
    assert not followed.now.predictions[0].equals(before.predictions[0])


@pytest.mark.filterwarnings("ignore:Operation with range")  # in MLflow
def test_version_that_predicts_no_power_leaves_the_old_one_in_production(versions, followed, in_workplace):
    """Set by hand, a model whose answers cannot be: the page says why, `doctor` calls it wrong, and rollback helps."""
    from forecast import tracking
    from forecast.learn import storage

    from workshop.teaching import doctor

    frame, model = followed.now.frame, LinearRegression()
    model.fit(features(frame), targets(frame)).intercept_[:] = math.nan
    with tracking.start_run("no_power") as run:
        bad = versions.add(storage.log_model(model, frame.head()), run.info.run_id)
    gate = Registry()
    gate.history(note=True)
    versions.move(bad)
    # A busy store is another fault, until the next poll.
    _poll_until(lambda: "not plausible" in str(layout.message(followed.now)), 60, followed)
    assert followed.now.champion.production.version == versions.numbers[0]
    message = str(layout.message(followed.now))
    for words in (f"Version {bad} is in production but cannot be used", "not plausible", "mlflow-gate rollback"):
        assert words in message
    assert f"Version {versions.numbers[0]} remains in use" in message
    finding = doctor._production(in_workplace.settings)
    assert (finding.verdict, "not plausible" in finding.found) == (doctor.WRONG, True)
    assert gate.rollback().version == versions.numbers[0]
    followed.poll()
    assert followed.now.faults == {}
    assert doctor._production(in_workplace.settings).verdict == doctor.OK


def test_data_that_goes_and_comes_back_is_reported(served, data_file, tmp_path, monkeypatch):
    """During a run there is no data file for minutes, which is no fault; later it is, until the file is back."""
    followed = Follower(tmp_path / "germany.parquet")
    followed.now = served
    followed.poll()
    assert "data" not in followed.now.faults
    assert followed.now.frame is served.frame
    monkeypatch.setattr(follower, "RUN_SECONDS", 0.0)
    followed.poll()
    assert "is gone" in followed.now.faults["data"].why
    (tmp_path / "germany.parquet").write_bytes(b"no table")
    followed.poll()
    assert "damaged or not Parquet" in followed.now.faults["data"].why
    assert followed.now.frame is served.frame
    (tmp_path / "germany.parquet").write_bytes(data_file.read_bytes())
    followed.poll()
    assert "data" not in followed.now.faults  # no tracking server answers here


def test_parameters_that_cannot_be_read_are_a_fault_and_no_more(served, data_file, tmp_path, monkeypatch):
    """The model stays in use while params.yaml is gone or broken; a new limit of the mean error counts at once."""
    file = tmp_path / "params.yaml"
    (tmp_path / "dvc.yaml").touch()
    monkeypatch.chdir(tmp_path)
    followed = Follower(data_file)
    followed.now = served
    good = (ROOT / "4_pipeline" / "params.yaml").read_text()
    for content in (None, "promote: [", good.replace("max_bias_percent: 5.0", "max_bias_percent: much")):
        if content is not None:
            file.write_text(content)
        followed.poll()
        assert "parameters" in followed.now.faults
        assert followed.now.predictions is not None
    file.write_text(good.replace("max_bias_percent: 5.0", "max_bias_percent: 7.0"))
    followed.poll()
    assert "parameters" not in followed.now.faults
    assert followed.now.max_bias_percent == 7.0
