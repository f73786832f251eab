"""The addresses printed by setup.sh, and a room with a subdomain for each person."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import Page, expect
from rooms import LAB_SECONDS, PEOPLE, SCRIPTS, Room
from workplace import wait_for

pytestmark = pytest.mark.privileged
ADA, HOST = PEOPLE[0], "room.example.org"
OPTIONS = "--people /root/names.txt --memory 1G"


def board_of(said: str) -> str:
    """Return the board's address from the output of setup.sh."""
    return re.search(r"https://\S+/services/board\b", said)[0]


def open_board_by_its_link(page: Page) -> None:
    """Wait for the board, then open it from the menu of the hub's pages."""
    expect(page.get_by_role("heading", name="The room")).to_be_visible()
    page.goto(page.url.replace("board--service.", "").partition("/services/")[0] + "/hub/home")
    page.get_by_text("Services").click()
    page.get_by_role("link", name="board").click()
    expect(page.get_by_role("heading", name="The room")).to_be_visible()


@pytest.fixture(scope="module")
def board(room) -> Iterator[str]:
    """Enable subdomains and yield the printed address of the board; pages already open keep the old address."""
    room.server.run(f"{SCRIPTS}/room.sh stop")
    yield board_of(room.set_up(f"{OPTIONS} --host {HOST} --subdomains"))
    room.server.run(f"{SCRIPTS}/room.sh stop")
    room.set_up(OPTIONS)


def test_printed_address_and_link_open_the_board(room):
    """The address printed by `setup.sh` and the menu of the hub's pages lead the instructor to the board."""
    with room.page("instructor", board_of(room.set_up(OPTIONS))) as page:
        open_board_by_its_link(page)


def test_log_in_form_has_one_name(room: Room, board):
    """On a person's subdomain the hub's pages redirect to the room's, and unknown names get no answer."""
    curl = "curl --insecure --silent --output /dev/null -w '%{http_code} %{redirect_url}' --connect-to ::10.98.1.1:"

    def answer(address: str, options: str = "") -> str:
        return room.laptop.run(f"{curl} {options} '{address}' && echo ' 0' || echo \" $?\"").strip()

    assert answer(f"https://{HOST}:8443/hub/login") == "200  0"
    for name in (ADA, "nobody", "board--service"):
        for path in ("/hub", "/hub/login?next=%2Fhub%2Fhome"):
            assert answer(f"https://{name}.{HOST}:8443{path}") == f"302 https://{HOST}:8443{path} 0"
        for path in ("//hub/login", "/%68ub/login", "/hub/login/"):
            assert answer(f"https://{name}.{HOST}:8443{path}", "--data username=ada")[:3] in ("302", "404")
    for name in ("10.98.1.1", "example.org", f"other{HOST}", "localhost"):
        assert answer(f"https://{name}:8443/hub/login") == "000  52"


def test_each_persons_pages_have_a_name(room: Room, board):
    """Ada works on her subdomain, the board is on another, and *Open* leads the instructor to Ada's JupyterLab."""
    start = "From a messy notebook"
    with room.page(ADA, f"https://{HOST}:8443") as page:
        expect(page.get_by_role("heading", name=start)).to_be_visible(timeout=LAB_SECONDS * 1000)
        assert page.url.startswith(f"https://{ADA}.{HOST}:8443/user/{ADA}/")
    with room.page("instructor", board) as page:
        open_board_by_its_link(page)
        assert page.url == f"https://board--service.{HOST}:8443/services/board/"
        link = page.locator("tr", has_text=ADA).get_by_role("link", name="Open")
        wait_for(lambda: page.reload() and link.count(), 60)
        with page.expect_popup() as opened:
            link.click()
        opened.value.get_by_role("button", name="Authorize").click()  # the hub asks once
        expect(opened.value.get_by_role("heading", name=start)).to_be_visible(timeout=LAB_SECONDS * 1000)
