"""Downloads against a real server: resumed, tried again, verified, and never half a file under its name."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import textwrap

import pytest

from workshop.data.download import download, file_name, without_password
from workshop.errors import DataError

CONTENT = os.urandom(1 << 20) + b"end"
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def get(web, tmp_path, monkeypatch):
    """A function that downloads the one file of the server into a cache, without pauses."""
    for variable in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    web.files["/data/power.csv"] = CONTENT

    def call(sha256=SHA256, url=None, **options):
        options = {"wait_seconds": 0.01, "silence_seconds": 5.0, **options}
        return download(url or f"{web.url}/data/power.csv", tmp_path / "cache", sha256, **options)

    return call


def _visible(folder):
    """The files under a name of their own; locks and parts begin with a point."""
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def test_download_is_there_whole_and_asks_once(get, web, tmp_path):
    """The content is in the cache under its name; the second time no request is made."""
    path = get()
    assert path.read_bytes() == CONTENT
    assert get() == path
    assert len(web.requests) == 1
    assert _visible(tmp_path / "cache") == ["power.csv"]


def test_download_with_a_warm_cache_needs_no_network(get, web):
    """With the server gone the cached file is handed out."""
    path = get()
    url = f"{web.url}/data/power.csv"
    web.files.clear()
    assert get(url=url) == path
    assert get(url="http://nowhere.invalid/data/power.csv") == path


def test_download_shows_its_progress_where_that_is_asked_for(get, capfd):
    """A bar on stderr, and nothing on stdout; without asking, neither."""
    get(progress=True).unlink()
    out, err = capfd.readouterr()
    assert (out, "100%" in err) == ("", True)
    get()
    assert capfd.readouterr() == ("", "")


def test_download_mends_a_damaged_cache(get, web):
    """A cached file that was changed is fetched again."""
    path = get()
    path.write_bytes(b"damaged")
    assert get().read_bytes() == CONTENT
    assert len(web.requests) == 2


@pytest.mark.parametrize("fault", [500, 503, 429, ("cut", 1000), ("cut", 0), ("other", b"")], ids=str)
def test_download_tries_again_what_may_pass(get, web, fault):
    """Statuses that pass, and a line that is cut, are tried again until the file is whole."""
    web.faults = [500, fault] if fault != ("other", b"") else [500]
    assert get().read_bytes() == CONTENT


def test_download_goes_on_where_the_line_was_cut(get, web):
    """The second request asks for the rest only."""
    web.faults = [("cut", 700_000)]
    assert get().read_bytes() == CONTENT
    (_, first), (_, second) = web.requests
    assert first is None
    start = int(second.removeprefix("bytes=").removesuffix("-"))
    assert 0 < start <= 700_000


def test_download_goes_on_where_another_process_ended(get, web, tmp_path):
    """What a process left when it gave up is the beginning of the next one's file; nothing had the final name."""
    web.faults = [("cut", 600_000), 500]
    with pytest.raises(DataError, match="could not be fetched"):
        get(tries=2)
    assert _visible(tmp_path / "cache") == []
    assert 0 < (tmp_path / "cache" / ".power.csv.part").stat().st_size <= 600_000
    assert get().read_bytes() == CONTENT
    assert web.requests[-1][1].startswith("bytes=")


@pytest.mark.parametrize("start", [b"x" * 1000, b"x" * (len(CONTENT) + 7)], ids=["shorter", "longer"])
def test_download_starts_over_when_the_start_was_of_another_file(get, web, tmp_path, start):
    """A part that does not fit is thrown away, and the file comes out right."""
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / ".power.csv.part").write_bytes(start)
    assert get().read_bytes() == CONTENT


def test_download_starts_over_when_the_server_knows_no_ranges(get, web):
    """A server that sends everything again is no reason to have the beginning twice."""
    web.ranges = False
    web.faults = [("cut", 700_000)]
    assert get().read_bytes() == CONTENT


def test_download_starts_over_when_another_part_comes(get, web):
    """A part from the wrong place is not put behind the beginning."""
    web.faults = [("cut", 700_000), ("from", 5)]
    assert get().read_bytes() == CONTENT


def test_download_refuses_another_content(get, web, tmp_path):
    """A login page instead of the file: both checksums are told, one request was made, and no file stays."""
    web.files["/data/power.csv"] = b"<html>log in</html>"
    with pytest.raises(DataError, match="not the published file") as caught:
        get()
    assert hashlib.sha256(b"<html>log in</html>").hexdigest() in caught.value.value
    assert SHA256 in caught.value.expected
    assert "--mirror" in caught.value.next_step
    assert len(web.requests) == 1
    assert _visible(tmp_path / "cache") == []


@pytest.mark.parametrize(("status", "requests"), [(404, 1), (403, 1), (500, 3)])
def test_download_tells_the_status(get, web, status, requests):
    """What does not pass is asked once, what may pass as often as said; the status is in the error."""
    web.faults = [status] * 3
    with pytest.raises(DataError, match="could not be fetched") as caught:
        get(tries=3)
    assert f"HTTP {status}" in caught.value.value
    assert len(web.requests) == requests


def test_download_tells_that_nothing_answers(get, web):
    """No server: the address, the reason and the ways out."""
    url = f"{web.url.replace('http://', 'http://reader:secret@')}/data/power.csv"
    web.server.server_close()
    with pytest.raises(DataError, match="after 2 tries") as caught:
        get(url=url, tries=2)
    assert "https_proxy" in caught.value.next_step
    assert "secret" not in str(caught.value)


def test_download_waits_for_a_slow_server_and_not_for_a_silent_one(get, web):
    """A pause is let pass; silence ends a try, and the next one goes on."""
    web.faults = [("slow", 0.3)]
    assert get().read_bytes() == CONTENT
    get().unlink()
    web.faults = [("slow", 1.5)]
    assert get(silence_seconds=0.4).read_bytes() == CONTENT
    assert web.requests[-1][1].startswith("bytes=")


def test_download_waits_longer_each_time(get, web):
    """Pauses grow: with a first one of 0.1 s, three of them take at least 0.7 s."""
    import time

    web.faults = [500] * 3
    before = time.monotonic()
    get(wait_seconds=0.1)
    assert time.monotonic() - before >= 0.7


def test_download_goes_through_the_proxy_of_the_environment(get, web, monkeypatch):
    """http_proxy is honoured, and no_proxy too."""
    monkeypatch.setenv("http_proxy", web.url)
    monkeypatch.setenv("no_proxy", "")
    assert get(url="http://data.example/data/power.csv").read_bytes() == CONTENT
    assert web.requests == [("http://data.example/data/power.csv", None)]


def test_download_tells_a_full_disk_and_leaves_nothing_under_the_name(web, tmp_path):
    """The system refuses to write: one error in words, with the cache's folder and the variable that moves it."""
    web.files["/data/power.csv"] = CONTENT
    # A limit on file size makes the system refuse a write as a full disk does, without filling one.
    script = textwrap.dedent(f"""
        import resource
        from pathlib import Path
        from workshop.data.download import download
        from workshop.errors import DataError
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
        try:
            download({web.url + "/data/power.csv"!r}, Path({str(tmp_path)!r}), {SHA256!r}, wait_seconds=0.01)
        except DataError as error:
            print(error)
    """)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert "could not be stored in the cache" in done.stdout
    assert "WORKSHOP_DOWNLOADS" in done.stdout
    assert _visible(tmp_path) == []


def test_two_downloads_at_once_make_one(web, tmp_path):
    """The second process waits for the first and finds its file."""
    web.files["/data/power.csv"] = CONTENT
    web.faults = [("slow", 1)]
    script = (
        "from pathlib import Path; from workshop.data.download import download;"
        f"download({web.url + '/data/power.csv'!r}, Path({str(tmp_path)!r}), {SHA256!r})"
    )
    running = [subprocess.Popen([sys.executable, "-c", script]) for _ in range(2)]
    assert [process.wait(timeout=60) for process in running] == [0, 0]
    assert len(web.requests) == 1


def test_interrupted_download_leaves_nothing_under_the_name(web, tmp_path):
    """Ctrl-C in the middle: what came stays aside and the next process goes on from it."""
    import signal
    import time

    web.files["/data/power.csv"] = CONTENT
    web.faults = [("slow", 20)]
    script = (
        "from pathlib import Path; from workshop.data.download import download;"
        f"download({web.url + '/data/power.csv'!r}, Path({str(tmp_path)!r}), {SHA256!r})"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.DEVNULL)
    part, deadline = tmp_path / ".power.csv.part", time.monotonic() + 30
    while not (part.exists() and part.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=30) != 0
    assert _visible(tmp_path) == []
    assert download(f"{web.url}/data/power.csv", tmp_path, SHA256).read_bytes() == CONTENT
    assert web.requests[-1][1].startswith("bytes=")


def test_addresses_become_names_without_paths_and_are_shown_without_passwords():
    """A name is never a path; an address without one is refused."""
    assert file_name("https://host/a/b%2F..%2Fc.csv?x=/../d") == "b_2F.._2Fc.csv"
    assert without_password("https://reader:secret@host:81/a") == "https://host:81/a"
    with pytest.raises(DataError, match="names no file"):
        file_name("https://host/")
