"""A forked program is as one that Python starts: `dvc repro` and `dvc-parallel repro` make the same report."""

from __future__ import annotations

import contextlib
import difflib
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from dvc_parallel.commands import Commands
from repositories import ENVIRONMENT, new_repository, read

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="programs are forked on Linux alone")

REPORT = '''
"""A program that reports what it finds, to the file that its argument names."""
import atexit, concurrent.futures, inspect, json, logging, multiprocessing as mp, multiprocessing.shared_memory
import multiprocessing.util, os, pathlib, pickle, resource, signal, stat, sys, threading, weakref

import setting
try:
    import joblib, numpy
except ImportError:
    joblib = None

SCALE = 1
LOCK = None
lines = []


def say(subject, value):
    lines.append(f"{subject}: {value}")


def scaled(number):
    logging.getLogger("pool").warning("scaling %s", number)
    with LOCK:
        return number * SCALE


def plain(number):
    return number + 1, mp.parent_process() is not None, sys.modules["__main__"].__name__


class Last:
    """An object that is deleted when the interpreter ends."""

    def __init__(self):
        self.file = open(sys.argv[-1] + ".last", "w")

    def __del__(self):
        self.file.write("deleted at the end\\n")


def say_python():
    main = sys.modules["__main__"]
    for name in ("__name__", "__file__", "__doc__", "__package__", "__cached__", "__annotations__"):
        say(name, repr(getattr(main, name, "none")))
    say("names", sorted(name for name in vars(main) if name.startswith("__")))
    say("builtins", type(main.__builtins__))
    say("loader, spec", (type(main.__loader__), main.__spec__ and main.__spec__.origin))
    say("source", len(inspect.getsource(main)))
    for name in ("argv", "orig_argv", "path", "flags", "warnoptions", "executable", "prefix", "pycache_prefix"):
        say(name, getattr(sys, name))
    say("hooks", [getattr(sys, name) is getattr(sys, f"__{name}__") for name in ("excepthook", "displayhook")])
    say("exception", sys.exception())
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        say("stream", (stream.name, stream.mode, stream.encoding, stream.errors, stream.isatty()))


def say_process():
    say("environment", dict(os.environ))
    say("cwd, umask", (os.getcwd(), os.umask(0o22)))
    say("stdin", repr(sys.stdin.read()))
    say("open files", sorted(os.listdir("/proc/self/fd")))
    say("signals", [str(signal.getsignal(number)) for number in sorted(signal.valid_signals())])
    status = dict(line.split(":", 1) for line in pathlib.Path("/proc/self/status").read_text().splitlines())
    masks = [int(status[name], 16) for name in ("SigPnd", "ShdPnd", "SigBlk", "SigIgn", "SigCgt")]
    say("signals", [mask & 0x7FFFFFFF for mask in masks])  # the others are the C library's
    say("threads", [thread.name for thread in threading.enumerate()])
    say("limits", [resource.getrlimit(getattr(resource, n)) for n in sorted(dir(resource)) if n.startswith("RLIMIT")])
    say("priority", os.nice(0))
    say("children", resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime)
    say("logging", (logging.root.handlers, logging.root.level, logging.lastResort is not None))


def say_multiprocessing():
    process = mp.current_process()
    say("process", (process.name, process.daemon, process.pid == os.getpid(), mp.parent_process(), process))
    say("configuration", (type(process).__name__, sorted(process._config), len(process.authkey), process._identity))
    say("children", mp.active_children())
    say("start method", (mp.get_start_method(allow_none=True), mp.get_start_method(), mp.get_all_start_methods()))
    say("spawns", (mp.spawn.get_executable(), mp.process.ORIGINAL_DIR, mp.util._finalizer_registry))
    with mp.Pool(2) as pool:
        say("pool", pool.map(scaled, range(4)))
    other = mp.Process(target=lambda: os._exit(SCALE))
    other.start()
    other.join()
    say("lambda", (other.exitcode, other.name))
    with mp.Manager() as manager:
        say("manager", dict(manager.dict({"a": 1})))
    with concurrent.futures.ProcessPoolExecutor(2) as executor:
        say("executor", list(executor.map(plain, range(3))))
    for method in ("spawn", "forkserver"):
        with mp.get_context(method).Pool(1) as pool:
            say(method, pool.map(plain, range(3)))
    memory = mp.shared_memory.SharedMemory(create=True, size=10)
    memory.close()
    memory.unlink()
    if not joblib:
        return
    say("loky", joblib.Parallel(2)(joblib.delayed(plain)(i) for i in range(3)))
    say("lambda in loky", joblib.Parallel(2)(joblib.delayed(lambda i: i * SCALE)(i) for i in range(3)))


def end():
    say("pickled", (pickle.loads(pickle.dumps(plain)) is plain, sorted(vars(sys.modules["__main__"]))))
    pathlib.Path(sys.argv[-1]).write_text("\\n".join(lines) + "\\n")


def main():
    global SCALE, LOCK, last, buffered
    SCALE, LOCK, last = 10, threading.Lock(), Last()
    say_python()
    say_process()
    logging.basicConfig(filename=sys.argv[-1] + ".log", format="%(message)s")
    say_multiprocessing()
    atexit.register(end)
    atexit.register(say, "the last handler comes first", threading.current_thread().name)
    weakref.finalize(last, say, "finalizer", 1)
    mp.util.Finalize(None, say, ("finalizer", 2), exitpriority=1)
    threading.Timer(0.2, say, ("thread", 3)).start()
    buffered = open(sys.argv[-1] + ".buffered", "w")
    buffered.write("left to the interpreter\\n")
    print("done")


if __name__ == "__main__":
    main()
'''
CONSOLE_SCRIPT = (
    f"#!{sys.executable}\nimport sys\nfrom report_cli import main\nif __name__ == '__main__':\n    sys.exit(main())\n"
)
ENTRY_POINTS = "[console_scripts]\nreport-cli = report_cli:main\n"
PRELOADS = ["concurrent.futures", "logging", "multiprocessing.pool", "multiprocessing.managers", "setting", "joblib"]


@pytest.fixture
def places(tmp_path) -> Path:
    """A folder with a program as script, module and console script; PATH and PYTHONPATH lead to the last."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "report-cli").write_text(CONSOLE_SCRIPT)
    (tmp_path / "bin" / "report-cli").chmod(0o755)
    (tmp_path / "site" / "report_cli-1.dist-info").mkdir(parents=True)
    (tmp_path / "site" / "report_cli-1.dist-info" / "METADATA").write_text("Name: report-cli\nVersion: 1\n")
    (tmp_path / "site" / "report_cli-1.dist-info" / "entry_points.txt").write_text(ENTRY_POINTS)
    (tmp_path / "site" / "report_cli.py").write_text(REPORT)
    (tmp_path / "site" / "setting.py").write_text("import os\nos.environ.setdefault('SET_BY_IMPORT', 'yes')\n")
    return tmp_path


@pytest.mark.parametrize("shell", ["/bin/sh", "/bin/bash"])
@pytest.mark.parametrize(
    ("command", "preload"),
    [
        ("report-cli one report", []),
        ("report-cli one report", PRELOADS),
        ("python report.py one report", PRELOADS),
        ("python ./report.py one report", PRELOADS),
        ("python -m report one report", PRELOADS),
        ("python -m package.report one report", PRELOADS),
    ],
)
def test_forked_program_reports_what_a_plain_start_reports(places, command, preload, shell):
    """Equal in every byte: interpreter, process, multiprocessing and all its pools, and what happens at the end."""
    if not Path(shell).exists():
        pytest.skip(f"{shell} is not on this machine")
    paths = {"PATH": f"{places / 'bin'}{os.pathsep}{ENVIRONMENT['PATH']}", "PYTHONPATH": str(places / "site")}
    environment = ENVIRONMENT | paths | {"SHELL": shell, "PYTHONWARNINGS": "default::UserWarning"}
    stage = {"cmd": command, "wdir": "inner", "outs": [f"report{end}" for end in ("", ".last", ".buffered", ".log")]}
    place, reports = places / "place", []
    for words in (["dvc", "repro"], ["dvc-parallel", "repro", *(f"--preload={module}" for module in preload)]):
        new_repository(place, {"report": stage})
        (place / "inner" / "package").mkdir(parents=True)
        for file in ("report.py", "package/report.py"):
            (place / "inner" / file).write_text(REPORT)
        done = subprocess.run(
            words, cwd=place, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout
        reports.append([read(place / "inner" / name).splitlines() for name in stage["outs"]])
        reports[-1][-1].sort()  # the processes of a pool log in any order
        log = "".join(read(file) for file in (place / ".dvc/tmp").glob("dvc-parallel/*.log"))
        shutil.rmtree(place)
    differences = [line for pair in zip(*reports, strict=True) for line in difflib.unified_diff(*pair, n=0)]
    assert not differences, "\n".join(differences)
    assert "pool: [0, 10, 20, 30]" in reports[1][0]
    assert reports[1][1:3] == [["deleted at the end"], ["left to the interpreter"]]
    assert log == f"> {command}\ndone\n"


@pytest.mark.parametrize("ignored", [signal.SIG_IGN, signal.SIG_DFL])
def test_program_ignores_the_signals_that_its_run_was_started_to_ignore(tmp_path, ignored):
    """As `dvc repro` in the background of a script, which is deaf to Ctrl-C, and so are its programs."""
    outputs = []
    for number, program in enumerate(("dvc", "dvc-parallel")):
        place = tmp_path / str(number)
        new_repository(place, {"say": {"cmd": "python say.py", "outs": ["said"]}})
        (place / "say.py").write_text("import signal\nprint(signal.getsignal(2), file=open('said', 'w'))\n")
        words = [program, "repro", *(["--preload=colorsys"] if number else [])]
        # pytest itself may ignore Ctrl-C.
        subprocess.run(words, cwd=place, env=ENVIRONMENT, check=True, preexec_fn=lambda: signal.signal(2, ignored))
        outputs.append((place / "said").read_text())
    assert outputs[0] == outputs[1]


ENDS = {
    "exit": "sys.exit()",
    "code": "sys.exit(7)",
    "large code": "sys.exit(300)",
    "no code": "sys.exit(-1)",
    "text": "print('out'); sys.exit('in words')",
    "object": "sys.exit({'a': 1})",
    "now": "print('lost'); os._exit(3)",
    "error": "def fail():\n    raise ValueError('bad')\nprint('out')\nfail()",
    "chain": "try:\n    1 / 0\nexcept ZeroDivisionError as error:\n    raise ValueError('bad') from error",
    "group": "raise ExceptionGroup('both', [ValueError(1), TypeError(2)])",
    "hook": "sys.excepthook = lambda kind, error, trace: print(kind, error, trace.tb_frame.f_code.co_name)\n1 / 0",
    "Ctrl-C": "raise KeyboardInterrupt",
    "killed": "os.kill(os.getpid(), signal.SIGKILL)",
    "terminated": "os.kill(os.getpid(), signal.SIGTERM)",
    "interrupted": "os.kill(os.getpid(), signal.SIGINT); time.sleep(5)",
    "at exit": "atexit.register(divmod, 1, 0)\nprint('out')",
    "thread": "threading.Thread(target=lambda: (time.sleep(0.2), print('thread'))).start()\nprint('main')",
    "daemon": "threading.Thread(target=time.sleep, args=(60,), daemon=True).start()\nprint('main')",
    "syntax": "1 +",
    "encoding": "# coding: nonsense\n",
    "latin": "# coding: latin-1\nprint(len('\xe4'))",
    "name": "import colorsys\nprint(colorsys.__file__)",
    "module": "import nothing_of_this_name",
}


@pytest.fixture(scope="module")
def commands():
    """Commands with modules imported beforehand."""
    with contextlib.closing(Commands(["colorsys", "threading"])) as commands:
        yield commands


@pytest.mark.parametrize("line", ["python program.py a", "python -m program a"])
@pytest.mark.parametrize("end", ENDS)
def test_forked_program_ends_as_a_plain_one(commands, tmp_path, end, line):
    """The same output, traceback and exit code, however the program ends."""
    imports = "import atexit, os, signal, sys, threading, time\n"
    source = ENDS[end] if ENDS[end].startswith("#") else imports + ENDS[end] + "\n"
    (tmp_path / "program.py").write_text(source, encoding="latin-1" if end == "latin" else "utf-8")
    if end == "name":
        (tmp_path / "colorsys.py").touch()
    log = tmp_path / "log"
    code = commands.start(line, str(tmp_path), ENVIRONMENT, log, warm=True).wait(60)
    plain = subprocess.run(
        f"exec {line}", shell=True, cwd=tmp_path, env=ENVIRONMENT, text=True, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
    )  # fmt: skip
    assert (log.read_text(), code) == (
        plain.stdout,
        plain.returncode if plain.returncode >= 0 else 128 - plain.returncode,
    )
