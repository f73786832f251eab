"""Clone this working tree into a temporary folder for the benchmarks, with separate servers and a separate cluster."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import nbformat

from tests.workplace import Servers, new_workplace, processes_of
from workshop.exports import exports_of

TIMEOUT_SECONDS = 900
WARM_SECONDS = 120
LAST_IMPORT = "mlflow_gate.registry"  # the last module that workers preload
TAIL_CHARACTERS = 3000


class Clone(Servers):
    """The clone and its servers; ``fresh_environment`` is the environment without the servers' addresses."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        root, environment = new_workplace(folder / "clone")
        del environment["DASK_PAPERMILL_DASK__KERNEL_IMPORTS"]  # set by `new_workplace` to turn preloading off
        environment.pop("PYTHONDONTWRITEBYTECODE", None)  # with it, both sides would compile imports at each start
        environment["DVC_SITE_CACHE_DIR"] = str(folder / "dvc")
        self.fresh_environment = environment
        super().__init__(root, dict(environment))

    def do(self, *command: str | Path, cwd: Path | None = None, environment: dict[str, str] | None = None) -> str:
        """Run a program and return its output; raise RuntimeError if it fails."""
        options = {"env": environment or self.environment, "timeout": TIMEOUT_SECONDS, "exit_code": None}
        done = self.run(*command, cwd=cwd, **options)
        if done.returncode:
            output = (done.stdout + done.stderr)[-TAIL_CHARACTERS:]
            raise RuntimeError(f"{' '.join(map(str, command))} exited with {done.returncode}:\n{output}")
        return done.stdout

    def up(self) -> None:
        """Start the servers and export their addresses, as `eval "$(workshop config --export)"` does in a shell."""
        self.do("workshop", "up", environment=self.fresh_environment)
        self.environment = self.fresh_environment | exports_of(self.settings)

    def down(self) -> None:
        """Stop the servers."""
        self.do("workshop", "down", environment=self.fresh_environment)

    def wait_until_warm(self) -> None:
        """Wait until all workers fork kernels with preloaded modules; raise RuntimeError after `WARM_SECONDS`."""
        folder, deadline = self.new_folder("warm"), time.monotonic() + WARM_SECONDS
        # Time an import: a notebook that mentions `sys.modules` might change imports, so its kernel would start cold.
        code = f"import time\nbegin = time.monotonic()\nimport {LAST_IMPORT}\nassert time.monotonic() - begin < 0.1"
        cell = nbformat.v4.new_code_cell(code)
        kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
        notebook = nbformat.v4.new_notebook(cells=[cell], metadata={"kernelspec": kernel})
        nbformat.write(notebook, folder / "warm.ipynb")
        with self.dask_client() as client:
            numbers = ",".join(map(str, range(len(client.scheduler_info(n_workers=-1)["workers"]))))
        while True:
            try:
                self.do("papermill-sweep", "warm.ipynb", "--sweep", f"worker={numbers}", cwd=folder)
            except RuntimeError:
                if time.monotonic() > deadline:
                    raise
            else:
                return

    def new_folder(self, name: str) -> Path:
        """Create and return an empty folder."""
        return Path(tempfile.mkdtemp(prefix=f"{name}-", dir=self.folder))


@contextlib.contextmanager
def running_clone() -> Iterator[Clone]:
    """Yield a clone with running servers; stop them and delete the clone."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        clone = Clone(Path(folder))
        try:
            clone.up()
            yield clone
        finally:
            clone.down()
            if processes := processes_of(Path(folder)):
                raise RuntimeError(f"the benchmarks left processes running: {processes}")
