"""Attacks of people and their pages on the hub, the board and by links; and errors of one person on the board."""

from __future__ import annotations

import contextlib
import functools
import json
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from playwright.sync_api import expect
from rooms import ADDRESS, BOARD, LAB_SECONDS, SCRIPTS, SUPERVISOR, Room, rows
from workplace import wait_for

pytestmark = pytest.mark.privileged
DATABASE = "/run/workshop-room/jupyterhub.sqlite"
# A page of the same origin can read the reader's XSRF token from the cookies.
CALL_API = """async ([method, path]) => {
  const token = document.cookie.match(/_xsrf=([^;]+)/)[1]
  const answer = await fetch("/hub/api/" + path, {method, headers: {"X-XSRFToken": token}})
  return [answer.status, await answer.text()]
}"""


def restart_hub(room: Room, change: str = "true") -> None:
    """Restart the hub after a change, and wait until it answers; JupyterLab servers keep running."""
    room.server.run(f"{change}; {SUPERVISOR} restart hub")
    health = f"curl --insecure --silent --fail {ADDRESS}/hub/health >/dev/null || echo down"
    wait_for(lambda: not room.server.run(health), 60)


@contextlib.contextmanager
def impatient_board(room: Room) -> Iterator[None]:
    """Make the board check every five seconds, with a deadline of twenty."""
    values = {"CHECK_SECONDS": 5, "QUIET_SECONDS": 0, "DISK_SECONDS": 5, "DEADLINE": 20}
    script = "; ".join(f"s/^{name} = [0-9]*/{name} = {value}/" for name, value in values.items())
    restart_hub(room, f"sed --in-place '{script}' {SCRIPTS}/board.py")
    try:
        yield
    finally:
        restart_hub(room, f"git -C /opt/workshop checkout --quiet {SCRIPTS}/board.py")


@contextlib.contextmanager
def troubles(room: Room) -> Iterator[dict[str, str]]:
    """Cause a problem for each of four people; yield a part of the board's message for each."""
    workshop = "/opt/workshop/.venv/bin/workshop"
    fake = 'case $USER in curie) echo words; exit;; dirac) exec yes;; esac; exec "$0".real "$@"'
    lines = f"printf '%s\n' '#!/bin/sh' '{fake}' >{workshop}; chmod 755 {workshop}"
    room.server.run(f"mv {workshop} {workshop}.real; {lines}")
    room.types("ada", "mv ~/workshop ~/elsewhere")
    room.types("boole", "cd 1_starting_point; mv model_rf.ipynb kept; mkfifo model_rf.ipynb")
    try:
        yield {"ada": "cd to", "boole": "did not finish within", "curie": "no steps", "dirac": "printed more than"}
    finally:
        room.server.run(f"mv {workshop}.real {workshop}; mv /home/ada/elsewhere /home/ada/workshop")
        room.types("boole", "cd 1_starting_point; mv --force kept model_rf.ipynb")


def test_cookies_of_the_instructor_open_no_admin_api(room):
    """A person's page opened by the instructor gets neither tokens nor other people's servers through the hub's API."""
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
    """A page with a script is shown as text, a notebook as sources and outputs; reading an empty pipe times out."""
    notebook = {"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": []}
    output = {"output_type": "display_data", "metadata": {}, "data": {"text/plain": ["words"], "text/html": ["<b>"]}}
    cell = {"cell_type": "code", "id": "a", "metadata": {}, "execution_count": 1, "source": ["1 + 1"]}
    notebook["cells"] = [cell | {"outputs": [output]}]
    room.open_lab("ada")
    config = 'open("/home/ada/ran", "w")'
    place = "~/.jupyter/jupyter_nbconvert_config.py"
    room.types("ada", f"mkdir -p ~/.jupyter; cat >{place}", input=config)
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
        assert room.types("ada", "ls ~/ran").returncode
        page.goto(f"{BOARD}files/ada/shown/pipe")
        assert "the command did not finish within" in page.inner_text("body")
        assert page.goto(f"{BOARD}files/ada/%2e%2e/.bashrc").status == 404
    room.types("ada", "rm -r shown ~/.jupyter")


def test_update_is_one_and_needs_a_button(room):
    """Links with a repository, a folder or any other parameter are rejected, and so is another page's button."""
    with room.page("dirac") as page:
        expect(page.get_by_role("heading", name="From a messy notebook")).to_be_visible(timeout=LAB_SECONDS * 1000)
        link = "repo=git://example.org/evil&targetPath=.config/git"
        for path in ("git-pull", "git-pull/api", "git-sync", "interact"):
            assert page.goto(f"{ADDRESS}/user/dirac/{path}?{link}").status == (404 if path == "interact" else 403)
        assert page.goto(f"{ADDRESS}/hub/update?{link}").status == 403
        page.goto(f"{ADDRESS}/hub/update")
        assert page.evaluate('fetch("", {method: "POST"}).then(answer => answer.status)') == 403
    assert room.types("dirac", "ls -A ~/.config/git 2>/dev/null").stdout == ""


def test_wrong_passwords_are_counted_by_name_and_address(room):
    """Six wrong passwords a minute from an address and thirty in all are checked, slowly; others can log in there."""
    room.laptop.run("for n in $(seq 10 16); do ip address replace 10.98.1.$n/24 dev eth0; done")
    others, source = [name for name in room.passwords if name not in ("ada", "euler")] * 3, "10.98.1.10"
    with ThreadPoolExecutor(80) as pool:
        guesses = [pool.submit(room.log_in, "ada", "wrong", source=source) for _ in range(40)]
        names = [pool.submit(room.log_in, "root", "wrong", source=source) for _ in range(3)]
        spread = [pool.submit(room.log_in, "euler", "wrong", source=f"10.98.1.{10 + n % 7}") for n in range(35)]
        assert {pool.submit(room.log_in, name, source=source).result().status_code for name in others} == {302}
        assert all(each.result().status_code == 403 and each.result().elapsed.total_seconds() >= 3 for each in names)
    for answers, count in ((guesses, 6), (spread, 30)):
        assert Counter(each.result().status_code for each in answers) == {403: count, 429: len(answers) - count}
    assert "Too many wrong passwords" in room.log_in("ada", source=source).text  # the right one, too
    assert room.log_in("ada").status_code == 302
    room.server.run("ip address replace fd00:98::1/64 dev to1 nodad")
    room.laptop.run("for n in $(seq 10 16); do ip address replace fd00:98::$n/64 dev eth0 nodad; done")
    one = [
        room.log_in("dirac", "wrong", source=f"fd00:98::{n}", address="https://[fd00:98::1]:8443")
        for n in range(10, 17)
    ]
    assert [each.status_code for each in one] == [403] * 6 + [429]  # an IPv6 client has all addresses of its network
    log = room.server.run("grep 'PAM Authentication failed' /var/lib/workshop-room/hub.log")
    assert "'ada'" in log
    assert "'root'" not in log
    restart_hub(room)  # resets the counts


def test_other_ways_to_the_log_in_are_closed(room):
    """Paths that the proxy would normalize are rejected, and so are passwords in the API or without nginx."""
    curl = "curl --insecure --silent --output /dev/null --write-out '%{http_code}' --path-as-is"
    for path in (
        r"/hub\login",
        "/hub/../hub/login",
        "/hub/./login",
        "/user/%2e%2E/hub/login",
        "/hub/..",
        "/x%2f..%2fhub",
    ):
        assert room.laptop.run(f"{curl} --request-target '{path}' --data username=ada {ADDRESS}") == "400", path
    room.server.run(f"{SCRIPTS}/person.sh enter boole")
    tokens = "http://10.77.0.2:8081/hub/api/users/ada/tokens"
    words = [json.dumps({"auth": {"username": "ada", "password": word}}) for word in (room.passwords["ada"], "wrong")]
    right, wrong = (room.types("boole", f"curl --silent --data '{each}' {tokens}").stdout for each in words)
    assert right == wrong
    assert json.loads(right)["status"] == 403
    curl, page = "curl --silent --cookie-jar jar --cookie jar", "http://10.77.0.2:8081/hub/login"
    form = f"--data username=ada --data password={room.passwords['ada']}"
    form += """ --data-urlencode "_xsrf=$(awk '/_xsrf/ {print $7}' jar)\""""
    past = f"cd; {curl} {page} >page; {curl} {form} --output /dev/null --write-out '%{{http_code}}' {page}; rm jar page"
    assert room.types("boole", past).stdout == "403"
    bomb = "curl --insecure --silent --head --header \"Cookie: $(printf 'a=%060000d' 1)\""
    assert 'Clear-Site-Data: "cookies"' in room.laptop.run(f"{bomb} {ADDRESS}/hub/home")  # of another name's page


def test_upgrade_for_an_unreadable_path_keeps_no_socket(room):
    """After two hundred such requests the proxy has no more open files than before."""
    proxy = room.server.run(f"{SUPERVISOR} pid proxy").strip()
    before = int(room.server.run(f"ls /proc/{proxy}/fd | wc -l"))
    upgrade = "--http1.1 --header 'Upgrade: websocket' --header 'Connection: Upgrade'"
    curl = f"curl --insecure --silent --output /dev/null --path-as-is {upgrade} --write-out '%{{http_code}}\n'"
    for path in ("/%ff", "//[]", "/user/ada/%ff"):
        room.laptop.run(f"{curl} --globoff {ADDRESS}'{path}?n='{{1..70}}")
    assert int(room.server.run(f"ls /proc/{proxy}/fd | wc -l")) < before + 20


def test_large_and_endless_bodies_are_refused(room):
    """Nginx and the hub reject bodies larger than a form, and abort a body that arrives byte by byte."""
    hub = room.server.run(f"{SUPERVISOR} pid hub").strip()
    peak = f"awk '/VmHWM/ {{print $2}}' /proc/{hub}/status"
    before = room.server.run(f"echo 5 >/proc/{hub}/clear_refs; {peak}")
    room.server.run(f"{SCRIPTS}/person.sh enter boole")
    curl = "curl --insecure --silent --output /dev/null --write-out ' %{http_code} %{time_total}' --max-time 60 -X POST"
    large, endless = "head -c 80M /dev/zero", "(while sleep 1; do printf x || exit; done)"
    chunks, sizes = "Transfer-Encoding: chunked", "Transfer-Encoding:' --header 'Content-Length: {}"
    kinds = ((large, sizes.format(80 << 20)), (large, chunks), (endless, sizes.format(60_000)), (endless, chunks))
    texts = [f"{body} | {curl} --header '{kind}' --upload-file - HUB/hub/login || true" for body, kind in kinds]
    with ThreadPoolExecutor(8) as pool:
        page = [pool.submit(room.laptop.run, text.replace("HUB", ADDRESS)) for text in texts]
        past = [pool.submit(room.types, "boole", text.replace("HUB", "http://10.77.0.2:8081")) for text in texts]
    answers = [each.result().split() for each in page] + [each.result().stdout.split() for each in past]
    assert [code for code, _ in answers[:2]] == ["413"] * 2
    refused = {"000", "100", "400", "408", "413", "502", "503"}  # 000, 100: closed while it is sent
    assert {code for code, _ in answers} <= refused, answers
    assert all(float(seconds) < 30 for _, seconds in answers), answers
    assert int(room.server.run(peak)) - int(before) < 50_000


def test_new_password_ends_server_and_sessions(room):
    """After `room.sh password` no process of the person runs, and open pages need the new password."""
    room.server.run(f"{SCRIPTS}/person.sh enter curie")
    room.types("curie", "setsid sleep 300 >/dev/null 2>&1 &")
    with room.page("curie", f"{ADDRESS}/hub/home") as page:
        page.wait_for_url("**/hub/home")
        room.server.run(f"{SCRIPTS}/room.sh password curie")
        assert not room.server.run("pgrep --uid curie || true")
        lines = room.server.path("/etc/workshop-room/passwords.txt").read_text().splitlines()
        old, room.passwords["curie"] = room.passwords["curie"], dict(line.split() for line in lines)["curie"]
        for _ in range(2):
            for path in ("/hub/home", "/user/curie/lab"):
                page.goto(ADDRESS + path)
                assert "/hub/login" in page.url
            assert room.log_in("curie").status_code == 302
        assert room.log_in("curie", old).status_code == 403


def test_update_leaves_no_program_of_the_person(room):
    """A program that git starts during an update ends with it, unless the person's JupyterLab is running."""
    restart_hub(room, f"{SCRIPTS}/person.sh leave dirac; {SCRIPTS}/person.sh enter dirac")
    monitor = "#!/bin/sh\ntouch ~/began; setsid sleep 300 >/dev/null 2>&1 &"
    room.types("dirac", "cat >~/monitor; chmod +x ~/monitor; git config core.fsmonitor ~/monitor", input=monitor)
    assert "<pre>" in room.post("/hub/update", room.log_in("dirac").cookies).text
    assert room.types("dirac", "ls ~/began").returncode == 0
    assert not room.server.run("pgrep --uid dirac || true")
    room.types("dirac", "rm ~/began ~/monitor; git config --unset core.fsmonitor")


def test_output_and_headers_of_a_person_are_the_persons(room):
    """JupyterLab's output is limited to a file of one megabyte, and its pages cannot set a global service worker."""
    restart_hub(room, f"{SCRIPTS}/person.sh leave ada; {SCRIPTS}/person.sh enter ada")
    plant = 'import os, sys\nif "up" in sys.orig_argv:\n    os.write(1, b"planted" * 2**19)'
    room.types("ada", "cat >sitecustomize.py", input=plant)  # which `workshop up` imports beside JupyterLab
    room.open_lab("ada")
    answer = "HTTP/1.1 200 OK\\r\\nService-Worker-Allowed: /\\r\\nX-Other: 1\\r\\nContent-Length: 0\\r\\n\\r\\n"
    listen = 'import socket\nserver = socket.create_server(("", 9005))\nwhile True:\n    taken = server.accept()[0]\n'
    serve = f'{listen}    taken.recv(9999)\n    taken.sendall(b"{answer}")\n    taken.close()'
    room.types("ada", f"python3 -c '{serve}' >/dev/null 2>&1 &")
    with room.page("ada") as page:
        page.wait_for_url("**/lab/**")
        proxied = functools.partial(page.goto, f"{ADDRESS}/user/ada/proxy/9005/")
        headers = wait_for(lambda: (given := proxied().headers).get("x-other") and given, 20)
        assert "service-worker-allowed" not in headers
        authorize = "hub/api/oauth2/authorize?client_id=jupyterhub-user-ada&redirect_uri=/user/ada/oauth_callback"
        code = f"{ADDRESS}/{authorize}&response_type=code&state=x&code_challenge_method=S256&code_challenge="
        for length, status in ((100, 200), (300, 400)):  # long values would fill the hub's database
            assert page.request.get(code + length * "a").status == status
    log = room.server.path("/var/lib/workshop-room/people/ada.log")
    wait_for(lambda: log.exists() and "planted" in log.read_text(), 60)
    assert log.stat().st_size <= 2**20
    room.types("ada", "rm sitecustomize.py")
    assert "planted" not in room.server.path("/var/lib/workshop-room/hub.log").read_text()


def test_error_of_one_person_is_one_row_of_the_board(room):
    """A missing folder, a pipe as a notebook, no JSON, endless output or a failed start affects only its own row."""
    people = ["ada", "boole", "curie", "dirac", "euler"]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(room.open_lab, people))
    with troubles(room) as reasons, impatient_board(room), room.page("instructor") as page:

        def are_said() -> bool:
            said = rows(page)
            return all(word in said[name] and "not checked for" in said[name] for name, word in reasons.items())

        wait_for(are_said, 2 * LAB_SECONDS)
        wait_for(lambda: "not checked" not in rows(page)["euler"], LAB_SECONDS)
        # As after a start that failed; the hub reads it when it starts.
        sql = "UPDATE spawners SET started = {} WHERE user_id = (SELECT id FROM users WHERE name = 'ada')"
        change = (
            f'python3 -Ic "import sqlite3; hub = sqlite3.connect({DATABASE!r}); hub.execute(\\"{sql}\\"); hub.commit()"'
        )
        restart_hub(room, change.format("NULL"))
        wait_for(lambda: "not logged in" in rows(page).get("ada", ""), 60)
        assert "MB" in rows(page)["euler"]
        room.server.run(change.format("last_activity"))


@pytest.mark.parametrize(
    ("name", "fill"),
    [
        ("boole", "n=0; while n=$((n + 1)); do dd if=/dev/zero of=fill/$n bs=1M count=100; done"),
        ("dirac", "n=0; while n=$((n + 1)); do touch $(seq --format=fill/$n.%.0f 1000); done"),
    ],
)
def test_full_disk_stops_one_person_and_no_other(room, name, fill):
    """A person who fills the disk is named and ended; the reserve is kept until the instructor releases it."""
    reserve = room.server.path("/home/.workshop-room-reserve/space")
    room.server.run(
        f"mount -o remount,nr_inodes=$((40000 + $(stat -fc '%c - %d' /home))) /home; {SCRIPTS}/person.sh enter {name}"
    )
    with room.page("instructor", BOARD) as page:  # the instructor was not logged in before
        wait_for(lambda: reserve.exists() and "\t0 MB" not in rows(page)[name], 60)
        page.wait_for_timeout(11_000)  # until the board has seen enough space
        room.types(name, f"mkdir ~/fill; cd; ({fill}) >/dev/null 2>&1 &")
        wait_for(lambda: "grew most" in rows(page)[name], 60)
        wait_for(lambda: not room.server.run(f"pgrep --uid {name} || true"), 60)
        assert next(iter(rows(page))) == name
        assert "Little space" in page.inner_text("body")
        assert reserve.exists()
        page.get_by_role("button", name="Release the reserve").click()
        expect(page.get_by_role("button", name="Release the reserve")).to_have_count(0)
        assert not reserve.exists()
    room.open_lab("euler")
    room.server.run(f"rm -r /home/{name}/fill; mount -o remount,nr_inodes=9999999 /home")
    wait_for(reserve.exists, 60)
