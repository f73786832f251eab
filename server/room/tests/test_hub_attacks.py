"""What a person, or a page of a person, tries on the hub, on its board and by links; and one person's trouble there."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from playwright.sync_api import Page, expect
from rooms import ADDRESS, LAB_SECONDS, SCRIPTS, SUPERVISOR, Room
from workplace import wait_for

pytestmark = pytest.mark.privileged
BOARD = f"{ADDRESS}/services/board/"
# What a page of the same origin can do with the cookies of whoever opens it: read the token against forged requests.
CALL_API = """async ([method, path]) => {
  const token = document.cookie.match(/_xsrf=([^;]+)/)[1]
  const answer = await fetch("/hub/api/" + path, {method, headers: {"X-XSRFToken": token}})
  return [answer.status, await answer.text()]
}"""


def rows(page: Page) -> dict[str, str]:
    """Return the board's row of each person."""
    page.goto(BOARD)
    return {row.split("\t")[0].strip(): row for row in page.locator("tr").all_inner_texts()[1:]}


def restart_hub(room: Room, change: str = "true") -> None:
    """Restart the hub after a change, and wait until it answers; JupyterLabs continue."""
    room.server.run(f"{change}; {SUPERVISOR} restart hub")
    health = f"curl --insecure --silent --fail {ADDRESS}/hub/health >/dev/null || echo down"
    wait_for(lambda: not room.server.run(health), 60)


@contextlib.contextmanager
def impatient_board(room: Room) -> Iterator[None]:
    """Have the board check every five seconds, with a deadline of twenty."""
    values = {"CHECK_SECONDS": 5, "QUIET_SECONDS": 0, "DISK_SECONDS": 5, "DEADLINE": 20}
    script = "; ".join(f"s/^{name} = [0-9]*/{name} = {value}/" for name, value in values.items())
    restart_hub(room, f"sed --in-place '{script}' {SCRIPTS}/board.py")
    try:
        yield
    finally:
        restart_hub(room, f"git -C /opt/workshop checkout --quiet {SCRIPTS}/board.py")


@contextlib.contextmanager
def troubles(room: Room) -> Iterator[dict[str, str]]:
    """Make a trouble for each of four people; provide a word of what the board says of each."""
    workshop = "/opt/workshop/.venv/bin/workshop"
    fake = 'case $USER in curie) echo words; exit;; dirac) exec yes;; esac; exec "$0".real "$@"'
    lines = f"printf '%s\n' '#!/bin/sh' '{fake}' >{workshop}; chmod 755 {workshop}"
    room.server.run(f"mv {workshop} {workshop}.real; {lines}")
    room.types("ada", "mv ~/workshop ~/elsewhere")
    room.types("boole", "cd 1_starting_point; mv model_rf.ipynb kept; mkfifo model_rf.ipynb")
    try:
        yield {"ada": "cd to", "boole": "did not end within", "curie": "no steps", "dirac": "it printed more than"}
    finally:
        room.server.run(f"mv {workshop}.real {workshop}; mv /home/ada/elsewhere /home/ada/workshop")
        room.types("boole", "cd 1_starting_point; mv --force kept model_rf.ipynb")


def test_cookies_of_the_instructor_open_no_admin_api(room):
    """A page of a person that the instructor opens gets neither tokens nor other people's servers by the hub's API."""
    with room.page("instructor") as page:
        page.goto(f"{ADDRESS}/hub/home")
        user = json.loads(page.evaluate(CALL_API, ["GET", "user"])[1])
        assert (user["admin"], sorted(user["roles"])) == (False, ["instructor", "user"])
        for method, path in (
            *(("GET", "users"), ("GET", "users/ada"), ("DELETE", "users/ada"), ("POST", "users/eve"), ("GET", "proxy")),
            *(("POST", "users/ada/server"), ("DELETE", "users/ada/server"), ("POST", "shutdown"), ("GET", "services")),
            *(("GET", "users/instructor/tokens"), ("POST", "users/instructor/tokens"), ("POST", "users/ada/tokens")),
            ("POST", "shares/instructor/"),
        ):
            assert page.evaluate(CALL_API, [method, path])[0] in (403, 404), (method, path)
        for path in ("/hub/admin", "/hub/token", "/user/ada/lab", "/user/ada/api/contents"):
            assert page.goto(ADDRESS + path).status in (403, 404)
        page.goto(BOARD)
        assert not page.get_by_role("link", name="Open").count()
        page.goto(f"{ADDRESS}/hub/home")  # the board's own page fetches nothing
        post = '{method: "POST", body: new URLSearchParams({name: "ada"})}'
        assert page.evaluate(f'fetch("/services/board/", {post}).then(answer => answer.status)') == 403


def test_board_shows_files_and_runs_nothing_of_them(room):
    """A page with a script is text, a notebook its sources and outputs; a pipe that nobody fills is given up."""
    notebook = {"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": []}
    output = {"output_type": "display_data", "metadata": {}, "data": {"text/plain": ["words"], "text/html": ["<b>"]}}
    cell = {"cell_type": "code", "id": "a", "metadata": {}, "execution_count": 1, "source": ["1 + 1"]}
    notebook["cells"] = [cell | {"outputs": [output]}]
    room.open_lab("ada")
    files = 'printf "<script>document.title = 1</script>" >page.html; mkfifo pipe; touch "<i>.txt"; cat >some.ipynb'
    assert room.types("ada", f"mkdir shown; cd shown; {files}", input=json.dumps(notebook)).returncode == 0
    with room.page("instructor") as page:
        page.goto(f"{BOARD}files/ada/shown/")
        assert page.locator("a").all_inner_texts() == ["<i>.txt", "page.html", "pipe", "some.ipynb"]
        answer = page.goto(f"{BOARD}files/ada/shown/page.html")
        assert "<script>" in page.inner_text("body")
        assert answer.headers["content-type"].startswith("text/plain")
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["content-security-policy"].startswith("default-src 'none'")
        page.goto(f"{BOARD}files/ada/shown/some.ipynb")
        text = page.inner_text("body")
        assert "1 + 1" in text
        assert "words" in text
        assert "<b>" not in text
        page.goto(f"{BOARD}files/ada/shown/pipe")
        assert "it did not end within" in page.inner_text("body")
        assert page.goto(f"{BOARD}files/ada/%2e%2e/.bashrc").status == 404
    room.types("ada", "rm -r shown")


def test_update_is_one_and_needs_a_button(room):
    """Links that name a repository, a folder or anything else are refused, and so is a button of another page."""
    with room.page("dirac") as page:
        expect(page.get_by_role("heading", name="From a messy notebook")).to_be_visible(timeout=LAB_SECONDS * 1000)
        link = "repo=git://example.org/evil&targetPath=.config/git"
        for path in ("git-pull", "git-pull/api", "git-sync", "interact"):
            assert page.goto(f"{ADDRESS}/user/dirac/{path}?{link}").status == (404 if path == "interact" else 403)
        assert page.goto(f"{ADDRESS}/hub/update?{link}").status == 403
        page.goto(f"{ADDRESS}/hub/update")
        assert page.evaluate('fetch("", {method: "POST"}).then(answer => answer.status)') == 403
    assert room.types("dirac", "ls -A ~/.config/git 2>/dev/null").stdout == ""


def test_wrong_passwords_wait_and_pam_is_asked_for_names_of_the_room(room):
    """Wrong passwords take three seconds, in which others log in; the page never asks the machine for root's."""
    curl, page = "curl --silent --insecure --output /dev/null", f"{ADDRESS}/hub/login"
    script = f"""
        cd $(mktemp -d)
        {curl} --cookie-jar jar {page}
        post() {{
            {curl} --cookie jar --data-urlencode "_xsrf=$(awk '/_xsrf/ {{print $7}}' jar)" \\
                --data username=$1 --data password=$2 --write-out '%{{http_code}} %{{time_total}}\\n' {page}
        }}
        for name in root root root ada ada ada ada ada ada ada; do post $name wrong & done
        sleep 0.5
        post boole {room.passwords["boole"]}
        wait"""
    answers = [line.split() for line in room.laptop.run(script).splitlines()]
    assert (answers[0][0], len(answers)) == ("302", 11)
    assert float(answers[0][1]) < 3
    assert all(code == "403" and float(seconds) >= 3 for code, seconds in answers[1:])
    log = room.server.run("grep 'PAM Authentication failed' /var/lib/workshop-room/hub.log")
    assert "'ada'" in log
    assert "'root'" not in log


def test_trouble_of_one_person_is_one_row_of_the_board(room):
    """A folder that is gone, a pipe for a notebook, no JSON and endless output: each row says so, one is checked."""
    people = ["ada", "boole", "curie", "dirac", "euler"]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(room.open_lab, people))
    with troubles(room) as reasons, impatient_board(room), room.page("instructor") as page:

        def are_said() -> bool:
            said = rows(page)
            return all(word in said[name] and "not checked since" in said[name] for name, word in reasons.items())

        wait_for(are_said, 2 * LAB_SECONDS)
        wait_for(lambda: "not checked" not in rows(page)["euler"], LAB_SECONDS)


def test_full_disk_stops_one_person_and_no_other(room):
    """The reserve is given up, and others log in; who fills the disk is first on the board, and is ended there."""
    room.open_lab("boole")
    reserve = room.server.path("/home/.workshop-room-reserve")
    with impatient_board(room):
        room.types("boole", "dd if=/dev/zero of=$HOME/large bs=1M")
        wait_for(lambda: not reserve.exists(), 60)
        room.open_lab("euler")
        room.types("boole", "dd if=/dev/zero of=$HOME/larger bs=1M")
        with room.page("instructor") as page:  # who was not logged in
            wait_for(lambda: next(iter(rows(page))) == "boole", 60)
            page.locator("tr", has_text="boole").get_by_role("button").click()
            wait_for(lambda: not room.server.run("pgrep --uid boole || true"), 60)
        room.server.run("rm /home/boole/large /home/boole/larger")
        wait_for(reserve.exists, 60)
    room.open_lab("boole")
