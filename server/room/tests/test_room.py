"""A room on a simulated machine: people log in with a browser, and reach nothing of each other.

`make test-room` starts it, as root.
"""

from __future__ import annotations

import functools
import itertools
import re
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from playwright.sync_api import expect
from rooms import ADDRESS, BOARD, LAB_SECONDS, PEOPLE, SUPERVISOR, rows
from workplace import wait_for

pytestmark = pytest.mark.privileged
CHAPTER_1 = " ".join(f"1_starting_point/{name}.ipynb" for name in ("make_processed_data", "model_linreg", "model_rf"))
# The memory (PSS) of a person's processes, some of which may end while it is read.
MEMORY = (
    "pgrep --uid {name} | sed 's|.*|/proc/&/smaps_rollup|' | xargs cat 2>/dev/null | "
    "awk '/^Pss:/ {{kB += $2}} END {{print int(kB / 1024)}}'"
)
README = Path(__file__).parents[1] / "README.md"


def test_people_log_in_and_reach_nothing_of_each_other(room):
    """Five people log in at once; then people try to reach the next person's servers, pages and files."""
    with ThreadPoolExecutor(len(PEOPLE)) as pool:
        print(dict(zip(PEOPLE, pool.map(room.open_lab, PEOPLE), strict=True)))
    for name, other in itertools.pairwise(PEOPLE[:3]):
        number = int(room.server.run(f"id -u {other}"))
        wait_for(functools.partial(room.answers, other, 5000), LAB_SECONDS)  # it starts after the start page
        for port in (5000, 2121, 8888):
            tried = room.types(name, f"curl --max-time 1 http://10.77.{number // 256}.{number % 256}:{port}")
            assert tried.returncode in (7, 28)  # unreachable, or no answer
        assert int(room.server.run(f"du -sm /home/{name}").split()[0]) < 40
        assert "Permission denied" in room.types(name, f"ls /home/{other}").stderr
        assert "Permission denied" in room.types(name, f"ls /proc/$(pgrep --oldest -u {other})/fd").stderr
        with room.page(name) as page:
            for path in (f"/user/{other}/lab", f"/user/{other}/mlflow/", "/services/board/"):
                assert page.goto(ADDRESS + path).status in (403, 404)


def test_each_works_and_the_board_shows_it(room):
    """After a notebook of chapter 1 in two clones, and `make run` in one, the instructor sees the next steps."""
    notebook = "jupyter execute --inplace 1_starting_point/make_processed_data.ipynb"
    with ThreadPoolExecutor(2) as pool:
        for done in pool.map(lambda name: room.types(name, notebook), PEOPLE[:2]):
            assert done.returncode == 0, done.stderr
    done = room.types(PEOPLE[0], "make run")
    assert "Production  wind_solar" in done.stdout, done.stderr
    with room.page("instructor") as page:
        wait_for(lambda: all("min" in rows(page).get(name, "") for name in PEOPLE), LAB_SECONDS)
        print(rows(page))
        page.goto(f"{BOARD}files/{PEOPLE[1]}/1_starting_point/make_processed_data.ipynb")
        assert "# Weather and renewable power in Germany" in page.inner_text("body")


def test_servers_of_chapter_4_stop_when_idle_and_start_when_their_page_is_opened(room):
    """After 30 idle seconds, in this test, the board stops Dask but not MLflow; opening Dask's page starts it."""
    answers = functools.partial(room.answers, PEOPLE[0])
    assert answers(8787)
    board = "/opt/workshop/server/room/board.py"
    room.server.run(f"sed --in-place 's/^IDLE_SECONDS = .*/IDLE_SECONDS = 30/' {board}; pkill --full [b]oard.py")
    wait_for(lambda: not answers(8787), 2 * LAB_SECONDS)
    assert answers(5000)
    room.server.run(f"git -C /opt/workshop checkout --quiet {board}; pkill --full [b]oard.py")
    with room.page(PEOPLE[0]) as page:
        page.goto(f"{ADDRESS}/user/{PEOPLE[0]}/dask-dashboard/status")
        wait_for(lambda: answers(8787), 60)
        expect(page).to_have_title(re.compile("Dask: "), timeout=60_000)


def test_servers_outlive_the_hub(room):
    """While the hub is down, open JupyterLab pages keep working; after its restart people can log in again."""
    with room.page(PEOPLE[0]) as page:
        expect(page.get_by_role("heading", name="From a messy notebook")).to_be_visible(timeout=LAB_SECONDS * 1000)
        room.server.run(f"kill -KILL $({SUPERVISOR} pid hub)")
        assert page.goto(f"{ADDRESS}/user/{PEOPLE[0]}/api/status").ok
    wait_for(
        lambda: not room.server.run(f"curl --insecure --silent --fail {ADDRESS}/hub/health >/dev/null || echo down"), 60
    )
    room.open_lab(PEOPLE[0])


def test_memory_hungry_program_affects_only_its_person(room):
    """A program in JupyterLab's terminal that allocates four gigabytes fails; no other process ends."""
    labs = "pgrep --full bin/jupyterhub-singleuser"
    before = room.server.run(labs)
    with room.page(PEOPLE[1]) as page:
        page.goto(f"{ADDRESS}/user/{PEOPLE[1]}/lab")
        page.get_by_role("button", name="New Launcher").first.click()  # of the tabs; a second one comes later
        page.locator(".jp-LauncherCard[title*='terminal']").click()
        terminal = page.locator(".xterm-helper-textarea").last
        terminal.wait_for(timeout=LAB_SECONDS * 1000)
        page.wait_for_timeout(3000)
        terminal.type("python -c 'bytearray(4 << 30)' 2>greedy.txt\n")
        wait_for(lambda: "MemoryError" in room.types(PEOPLE[1], "cat greedy.txt").stdout, 60)
    assert room.server.run(labs) == before


def test_stopped_person_leaves_no_process_and_loses_nothing(room):
    """After the board's button, as after an idle hour, no process runs; the next log-in finds the same runs."""
    name = PEOPLE[2]
    log = "python -c 'import mlflow; mlflow.start_run(run_name=\"kept\")'"
    assert room.types(name, f'eval "$(workshop config --export)"; {log}').returncode == 0
    with room.page("instructor", BOARD) as page:
        page.locator("tr", has_text=name).get_by_role("button", name="End server").click()
        wait_for(lambda: not room.server.run(f"pgrep --uid {name} || true"), 60)
    room.open_lab(name)
    wait_for(lambda: room.answers(name, 5000), LAB_SECONDS)
    find = "python -c 'import mlflow; print(mlflow.search_runs(output_format=\"list\")[0].info.run_name)'"
    assert room.types(name, f'eval "$(workshop config --export)"; {find}').stdout == "kept\n"


def test_link_brings_updates_and_overwrites_nothing(room):
    """An update brings a changed file, and keeps one that the person changed."""
    name = PEOPLE[3]
    assert room.types(name, "echo mine >>1_starting_point/README.md").returncode == 0
    change = "echo news >>START.txt; echo news >>1_starting_point/README.md; git add --all"
    commit = "git -c user.name=Me -c user.email=me@example.org commit --quiet --message News"
    room.server.run(f"cd /opt/workshop; {change}; {commit}")
    link = re.search(r"https://ROOM(/hub/update)", README.read_text())[1]
    with room.page(name) as page:
        page.goto(ADDRESS + link)
        page.get_by_role("button", name="Update").click()
        expect(page.locator("pre")).to_contain_text("START.txt", timeout=LAB_SECONDS * 1000)
    assert room.types(name, "cat START.txt; tail -n 1 1_starting_point/README.md").stdout == "news\nmine\n"


def test_open_room_accepts_any_name_but_system_accounts(room):
    """All but the instructor share one password; the name of a system account is rejected with the reason."""
    room.server.path("/root/password").write_text("on the board")
    room.set_up("--open --password-file /root/password")
    room.passwords |= dict.fromkeys(("gauss", "daemon"), "on the board")
    room.open_lab("gauss")
    instructor = room.server.path("/etc/workshop-room/instructor.password").read_text().strip()
    tries = (
        ("noether", "on a board"),
        ("instructor", "on the board"),
        ("Gauss", "on the board"),
        ("instructor", instructor),
    )
    assert [room.log_in(*each).status_code for each in tries] == [403, 403, 302, 302]
    with room.page("daemon") as page:
        expect(page.get_by_text("The name daemon is taken")).to_be_visible(timeout=LAB_SECONDS * 1000)


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_twenty_people_on_one_machine(room):
    """Twenty people log in, run chapter 1 and chapter 2's first notebook together, and four run the pipeline."""
    room.server.path("/root/password").write_text("on the board")
    room.set_up("--open --password-file /root/password")
    names = [f"person{number}" for number in range(20)]
    room.passwords |= dict.fromkeys(names, "on the board")
    log_in = room.open_lab
    print("| what | seconds until all have it | MB a person |", "| --- | --- | --- |", sep="\n")

    def do(what: str, action: Callable[[str], object], some: list[str]) -> None:
        began = time.monotonic()
        with ThreadPoolExecutor(5 if action is log_in else len(some)) as pool:  # browsers need more memory
            list(pool.map(action, some))
        passed = time.monotonic() - began
        sizes = [int(room.server.run(MEMORY.format(name=name))) for name in some]
        print(f"| {what} | {passed:.0f} | {statistics.median(sizes):.0f} (at most {max(sizes)}) |", flush=True)

    def types(text: str) -> Callable[[str], None]:
        def check(name: str) -> None:
            done = room.types(name, f'eval "$(workshop config --export)"; {text}')
            assert done.returncode == 0, done.stderr

        return check

    do("log-in, until START.md is there, five browsers at a time", log_in, names)
    do("the three notebooks of chapter 1", types(f"jupyter execute --inplace {CHAPTER_1}"), names)
    do("chapter 2's first notebook", types("cd 2_tracking && jupyter execute --inplace model_linreg.ipynb"), names)
    do("`make run`, four people", types("make run"), names[:4])
