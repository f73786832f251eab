"""Starts, watches and stops the services through supervisor; one set of servers for one state folder."""

from __future__ import annotations

import contextlib
import logging
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass

import psutil

from workshop import ownership
from workshop.errors import ParameterError, ServiceError
from workshop.servers import ports, supervisor
from workshop.servers.database import ensure_database
from workshop.servers.services import SERVICES, Service, is_healthy, refuse_beyond_loopback
from workshop.servers.state import ensure_version, read_version
from workshop.settings import Settings, get_settings

logger = logging.getLogger(__name__)

START_SECONDS = 120
STOP_SECONDS = 30
LOG_LINES = 15


@dataclass(frozen=True)
class Status:
    """One service as it is now.

    ``by_hand`` tells that a person started it, and not `up`; ``reason`` says whose server has its port, or why it was
    given up, after it had ended again and again.
    """

    name: str
    address: str
    pid: int | None
    healthy: bool
    by_hand: bool = False
    reason: str | None = None

    def as_dict(self) -> dict:
        """Return the fields as JSON-able values."""
        return asdict(self)


def status(settings: Settings | None = None) -> list[Status]:
    """Return what runs, asking every service for its health."""
    settings = settings or get_settings()
    processes, left = supervisor.processes(settings), _started_by_hand(settings)
    rows = []
    for service in SERVICES:
        process, reason = processes.get(service.name, {}), None
        if stranger := ownership.find_stranger(settings, *service.ports_of(settings)):
            reason = f"its port {stranger.port} is held by {stranger}"
        elif process.get("statename") == "FATAL":
            reason = _why_given_up(service, settings)
        by_hand = service.name in left
        pid = left[service.name].pid if by_hand else process.get("pid") or None
        healthy = by_hand or is_healthy(service, settings)  # one started by hand was asked already
        rows.append(Status(service.name, service.address(settings), pid, healthy, by_hand, reason))
    return rows


def up(tell: Callable[[str], None] = logger.info) -> Settings:
    """Start what does not run, wait until every service answers, return the settings with the ports taken.

    ``tell`` gets a line for each port that was busy and each service that answers. Called again it finds all
    running and changes nothing; so it does with servers that a person started by hand. Raises ServiceError naming the
    service that does not answer, with the last lines of its log.
    """
    settings = get_settings()
    refuse_beyond_loopback(settings, *(service.name for service in SERVICES))
    _check_folder(settings)
    with _only_one(settings):
        read_version(settings)  # what a newer clone has made is left alone
        is_supervised = supervisor.answers(settings)
        if not is_supervised:
            _end_leftovers(settings, tell)
        left = _started_by_hand(settings)
        if not supervisor.processes(settings).get("mlflow", {}).get("pid"):
            _refuse_second_database_user(settings, left)
        ours = [service for service in SERVICES if service.name not in left]
        with contextlib.ExitStack() as choosing:
            if not is_supervised:
                _remove_stale_files(settings)
                ensure_version(settings)
                settings.credentials(create=True)
                choosing.enter_context(ports.only_one_chooses(tell))
                settings = ports.take(settings, tell)
                is_new = not settings.database.exists()
                if not is_new and "mlflow" not in left:
                    ensure_database(settings, tell)
                supervisor.start(settings, frozenset(left))
                if is_new:  # it takes a while, in which the other servers start
                    ensure_database(settings, tell)
            for service in SERVICES:
                if service.name in left:
                    tell(f"{service.title}: {service.address(settings)}, started by hand and left as it is")
            _bring_up(settings, [service for service in ours if not service.comes_last], tell)
        _bring_up(settings, [service for service in ours if service.comes_last], tell)
    return settings


def down(tell: Callable[[str], None] = logger.info) -> int:
    """Stop every service that `up` started, and all they started; return how many processes had to be ended."""
    settings = get_settings()
    if not settings.state.exists():
        return 0
    with _only_one(settings):
        running = ownership.marked_processes(settings.state)
        if supervisor.answers(settings):
            tell("stopping the servers")
            with contextlib.suppress(*supervisor.UNANSWERED):
                supervisor.ask(settings, "shutdown")
            psutil.wait_procs(running, timeout=STOP_SECONDS)
        _end_leftovers(settings, tell)
        left = _started_by_hand(settings)
        for service in SERVICES:
            if service.name in left:
                _tell_by_hand(service, settings, tell)
        if settings.is_up and not left:
            settings.ports_file.replace(settings.kept_ports_file)
        _remove_stale_files(settings)
    return len(running)


def stop(names: Sequence[str], tell: Callable[[str], None] = logger.info) -> int:
    """Stop the services of these ``names`` alone; return how many processes had to be ended.

    `up` starts them again, on the same ports. Raises ParameterError for a name that no service has.
    """
    allowed = [service.name for service in SERVICES]
    if unknown := [name for name in names if name not in allowed]:
        raise ParameterError(
            "There is no such service.",
            value=", ".join(unknown),
            expected=f"one or more of {', '.join(allowed)}",
            next_step="workshop status",
        )
    settings, ended = get_settings(), 0
    if not settings.state.exists():
        return 0
    with _only_one(settings):
        processes, left = supervisor.processes(settings), _started_by_hand(settings)
        for service in reversed(SERVICES):  # who uses another goes before it
            pid = processes.get(service.name, {}).get("pid")
            if service.name not in names:
                continue
            if pid:
                family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
                supervisor.ask(settings, "stopProcess", service.name)
                psutil.wait_procs(family, timeout=STOP_SECONDS)
                tell(f"{service.title}: stopped; it was at {service.address(settings)}")
                ended += len(family)
            elif service.name in left:
                _tell_by_hand(service, settings, tell)
            else:
                tell(f"{service.title}: does not run")
    return ended


def _started_by_hand(settings: Settings) -> dict[str, psutil.Process]:
    """Return the process that listens for each service that a person started for this state folder, by its name."""
    holders = ownership.find_holders(settings, *(port for service in SERVICES for port in service.ports_of(settings)))
    found = {}
    for service in SERVICES:
        holder = holders.get(next(iter(service.ports_of(settings)), 0))
        if holder and holder.by_hand and holder.state == settings.state and is_healthy(service, settings):
            found[service.name] = holder.process
    return found


def _refuse_second_database_user(settings: Settings, left: dict[str, psutil.Process]) -> None:
    """Raise ServiceError when a program other than the tracking server that is ``left`` has the database open."""
    for user in ownership.users_of(settings.database):
        if left.get("mlflow") not in ownership.family_of(user):
            raise ServiceError(
                "Another server has the tracking database open; two on one database would lose runs.",
                value=f"process {user.pid}: {' '.join(user.cmdline())[:120]}",
                expected=f"no other program uses {settings.database}, or a tracking server that answers on port "
                f"{settings.mlflow_port}",
                next_step=f"stop it (Ctrl-C where it was started, or `kill {user.pid}`), or wait until it answers, "
                "then try again",
            )


def _tell_by_hand(service: Service, settings: Settings, tell: Callable[[str], None]) -> None:
    tell(f"{service.title}: {service.address(settings)} goes on; who started it by hand ends it there, with Ctrl-C")


@contextlib.contextmanager
def stopped(settings: Settings) -> Iterator[None]:
    """Keep the servers of this state folder from being started meanwhile; raise ServiceError when some run."""
    _check_folder(settings)
    with _only_one(settings):
        if running := ownership.marked_processes(settings.state):
            raise ServiceError(
                "The servers of this state folder run.",
                value=f"{len(running)} processes on {settings.state}",
                next_step="workshop down; or set WORKSHOP_STATE to another folder",
            )
        yield


# -- health ------------------------------------------------------------------------------------------------------------
def _bring_up(settings: Settings, services: list[Service], tell: Callable[[str], None]) -> None:
    """Start services that wait for others, and those that ended too often: somebody asks for them again."""
    processes = supervisor.processes(settings)
    for service in services:
        if processes[service.name]["statename"] in ("FATAL", "EXITED", "STOPPED"):
            supervisor.ask(settings, "startProcess", service.name, False)  # False: health is waited for here
    _wait_until_healthy(settings, services, tell)


def _wait_until_healthy(settings: Settings, services: list[Service], tell: Callable[[str], None]) -> None:
    began = time.monotonic()
    waiting = list(services)
    while waiting:
        for service in list(waiting):
            if is_healthy(service, settings):
                waiting.remove(service)
                tell(f"{service.title}: {service.address(settings)}")
        if not waiting:
            return
        processes = supervisor.processes(settings)
        wanted = [port for service in waiting for port in service.ports_of(settings)]
        ownership.require_own(settings, *(port for port in wanted if not ports.is_free(settings.host, port)))
        for service in waiting:
            if processes.get(service.name, {}).get("statename") == "FATAL":
                raise _not_healthy(service, settings, "it ended again and again")
        if time.monotonic() - began > START_SECONDS:
            raise _not_healthy(waiting[0], settings, f"no answer within {START_SECONDS} s")
        time.sleep(0.3)


def _log_lines(service: Service, settings: Settings) -> list[str] | None:
    """Return what a service has said; None when it has no log."""
    try:
        return supervisor.log_file(service, settings).read_text(errors="replace").splitlines()
    except OSError:
        return None


def _why_given_up(service: Service, settings: Settings) -> str:
    """Return the last words of a service that ended again and again."""
    lines = [line.strip() for line in _log_lines(service, settings) or [] if line.strip()]
    last = lines[-1] if lines else "without a word"
    return f"it ended again and again: {last} (all of it: {supervisor.log_file(service, settings)})"


def _not_healthy(service: Service, settings: Settings, why: str) -> ServiceError:
    lines = _log_lines(service, settings)
    last = "(no log)" if lines is None else "\n".join(lines[-LOG_LINES:])
    return ServiceError(
        f"{service.title} does not answer: {why}.",
        value=f"{service.address(settings)}; the end of its log:\n{last}",
        next_step="mend the cause, then `workshop down` and `workshop up`; "
        f"the whole log is {supervisor.log_file(service, settings)}",
    )


# -- what was left behind ------------------------------------------------------------------------------------------
def _check_folder(settings: Settings) -> None:
    try:
        settings.state.mkdir(parents=True, exist_ok=True)
        settings.state.chmod(0o700)
        settings.logs.mkdir(exist_ok=True)
    except OSError as error:
        raise ServiceError(
            "The state folder cannot be used.",
            value=f"{settings.state} ({error.strerror})",
            expected="a folder that you may write to",
            next_step="set WORKSHOP_STATE to another folder",
        ) from None


@contextlib.contextmanager
def _only_one(settings: Settings) -> Iterator[None]:
    """Hold the state folder's lock: `up`, `down` and `restore` from two shells take turns."""
    import filelock

    try:
        with filelock.FileLock(settings.state / "supervision.lock", timeout=START_SECONDS + STOP_SECONDS):
            yield
    except filelock.Timeout:
        raise ServiceError(
            "Another `workshop up`, `down` or `restore` is at work on this state folder.",
            value=settings.state,
            next_step="wait for it, then try again",
        ) from None


def _end_leftovers(settings: Settings, tell: Callable[[str], None]) -> None:
    """End what an earlier supervisor left running."""
    orphans = ownership.marked_processes(settings.state)
    if not orphans:
        return
    tell(f"ending {len(orphans)} processes that an earlier start left behind")
    for process in orphans:
        with contextlib.suppress(psutil.Error):
            process.terminate()
    _, stubborn = psutil.wait_procs(orphans, timeout=5)
    for process in stubborn:
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(stubborn, timeout=5)


def _remove_stale_files(settings: Settings) -> None:
    """Remove what an earlier supervisor left."""
    for file in (supervisor.socket_file(settings), settings.state / "supervisord.pid"):
        file.unlink(missing_ok=True)
    shutil.rmtree(settings.state / "dask", ignore_errors=True)
