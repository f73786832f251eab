"""Open Power System Data: fetched from a server of our own that serves files of its layout."""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import zipfile

import pytest
import yaml
from workplace import BIN

from workshop.data import sources
from workshop.data.prepare import prepare
from workshop.errors import DataError
from workshop.parameters import Fetch

POWER, WEATHER = sources.POWER_FILE, sources.WEATHER_FILE
ARCHIVE, MEMBER = sources.RELEASES[WEATHER].name, sources.RELEASES[WEATHER].member


def _sha256(content):
    return hashlib.sha256(content).hexdigest()


def _zip(members):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


@pytest.fixture
def tables(raw):
    """The first 200 lines of power and weather, as bytes."""
    return [b"".join((raw / name).read_bytes().splitlines(keepends=True)[:200]) for name in (POWER, WEATHER)]


@pytest.fixture
def options(web, tables):
    """A mirror on the test's server, with weather in an archive as the publisher packs it, and its checksums."""
    web.files = {f"/{POWER}": tables[0], f"/{ARCHIVE}": _zip({MEMBER: tables[1], "README": b"?"})}
    sums = {POWER: _sha256(tables[0]), WEATHER: _sha256(tables[1])}
    return Fetch(source="opsd", mirror=f"{web.url}/", sha256=sums)


@pytest.fixture
def get(options, tmp_path, monkeypatch):
    """A function that fetches into `raw` with a cache of the test's own, and without pauses."""
    monkeypatch.setenv("WORKSHOP_DOWNLOADS", str(tmp_path / "cache"))
    monkeypatch.setattr("pooch.core.time.sleep", lambda seconds: None)

    def call(options=options, **more):
        return sources.fetch("opsd", tmp_path / "raw", options, **more)

    return call


def test_fetch_puts_the_published_files_with_card_and_sums(get, tables, tmp_path):
    """Both tables to the byte, weather out of its archive; card and origin name the source; the sums agree."""
    paths = get()
    assert [path.read_bytes() for path in paths[:2]] == tables
    assert sorted(tmp_path.joinpath("raw").iterdir()) == sorted(paths)
    card = paths[2].read_text(encoding="utf-8")
    assert sources.ATTRIBUTIONS["opsd"] in card
    assert _sha256(tables[0]) in card
    frame, findings = prepare(tmp_path / "raw", 2013, 2013)
    assert findings["source"] == "opsd"
    origin = sources.origin_of(frame)
    assert (origin.attribution, origin.modelled, origin.measured_name) == (
        sources.ATTRIBUTIONS["opsd"],
        False,
        "measured",
    )


def test_fetch_leaves_a_complete_folder_alone_and_needs_no_network_after(get, web, tmp_path):
    """Complete: no request, no write. Files gone: the cache is enough, without any server."""
    paths = get()
    before = {path: path.stat().st_mtime_ns for path in paths}
    requests = len(web.requests)
    assert {path: path.stat().st_mtime_ns for path in get()} == before
    web.files.clear()
    for path in paths:
        path.unlink()
    assert all(path.exists() for path in get())
    assert len(web.requests) == requests


def test_cut_download_starts_again(get, web, tables):
    """A connection that breaks in the middle, and a busy server: the file is fetched again, whole."""
    web.faults = ["cut", 503, "cut"]
    assert get()[0].read_bytes() == tables[0]


def test_download_that_never_comes_is_an_error_without_the_password(get, options, web, tmp_path, monkeypatch):
    """Every try fails: the address, its status, and another way; the password in the address is not shown."""
    monkeypatch.setattr(sources, "RETRIES", 1)
    web.files.clear()
    mirror = web.url.replace("http://", "http://me:secret@")
    with pytest.raises(DataError, match="could not be fetched") as caught:
        get(options.model_copy(update={"mirror": mirror}))
    assert "404" in caught.value.value
    assert "--mirror" in caught.value.next_step
    assert "secret" not in str(caught.value)
    assert not list((tmp_path / "cache").glob("*.csv"))


@pytest.mark.parametrize("unpacked", [False, True])
def test_fetch_takes_a_local_folder(get, options, web, tables, tmp_path, unpacked):
    """Copies in a folder, weather packed or unpacked; relative folders start where the caller says."""
    (tmp_path / "stick").mkdir()
    (tmp_path / "stick" / POWER).write_bytes(tables[0])
    if unpacked:
        (tmp_path / "stick" / WEATHER).write_bytes(tables[1])
    else:
        (tmp_path / "stick" / ARCHIVE).write_bytes(web.files[f"/{ARCHIVE}"])
    before = sorted((tmp_path / "stick").iterdir())
    paths = get(options.model_copy(update={"mirror": "stick"}), base=tmp_path)
    assert [path.read_bytes() for path in paths[:2]] == tables
    assert web.requests == []
    assert sorted((tmp_path / "stick").iterdir()) == before


def test_fetch_names_what_a_local_folder_lacks(get, options, tmp_path):
    """No folder, a folder without the file, and a copy of other content."""
    wanted = options.model_copy(update={"mirror": "stick"})
    with pytest.raises(DataError, match="no such folder"):
        get(wanted, base=tmp_path)
    (tmp_path / "stick").mkdir()
    (tmp_path / "stick" / "other.csv").touch()
    with pytest.raises(DataError, match="does not hold the file") as caught:
        get(wanted, base=tmp_path)
    assert caught.value.value == "other.csv"
    assert POWER in caught.value.expected
    (tmp_path / "stick" / POWER).write_bytes(b"other")
    with pytest.raises(DataError, match="not the published one"):
        get(wanted, base=tmp_path)
    assert (tmp_path / "stick" / POWER).exists()
    assert not (tmp_path / "raw" / POWER).exists()


def test_fetch_never_mixes_two_sources(get, web, raw_copy, tmp_path, monkeypatch):
    """A folder of the sample, and a fetch that fails half-way: nothing of the sample is left to be mistaken."""
    monkeypatch.setattr(sources, "RETRIES", 0)
    web.files.pop(f"/{ARCHIVE}")
    with pytest.raises(DataError, match="could not be fetched"):
        get()
    assert [path.name for path in (tmp_path / "raw").iterdir()] == [POWER]
    with pytest.raises(DataError, match="There is no file"):
        prepare(tmp_path / "raw")


WRONG = {
    "path out of the folder": _zip({"../../evil": b"x", MEMBER: b"y"}),
    "other member": _zip({MEMBER.replace("2019", "2020"): b"y"}),
    "other content": _zip({MEMBER: b"y"}),
    "login page": b"<html>log in</html>",
    "cut": _zip({MEMBER: os.urandom(5000)})[:2000],
}


@pytest.mark.parametrize("kind", WRONG)
def test_fetch_refuses_a_wrong_archive_and_fetches_again(get, web, tables, tmp_path, kind):
    """Nothing of the archive is written, and the next call fetches it again."""
    good, web.files[f"/{ARCHIVE}"] = web.files[f"/{ARCHIVE}"], WRONG[kind]
    with pytest.raises(DataError, match=r"cannot be unpacked|not the published one") as caught:
        get()
    assert "fetch it again" in caught.value.next_step
    assert not (tmp_path / "raw" / WEATHER).exists()
    assert not list(tmp_path.rglob("evil"))
    web.files[f"/{ARCHIVE}"] = good
    assert get()[1].read_bytes() == tables[1]


def test_download_of_other_content_is_thrown_away(get, web, tmp_path, monkeypatch):
    """A file with another checksum never reaches cache or folder; the error says which checksum was expected."""
    monkeypatch.setattr(sources, "RETRIES", 0)
    web.files[f"/{POWER}"] = b"<html>log in</html>"
    with pytest.raises(DataError, match="not the published file") as caught:
        get()
    assert "sha256" in caught.value.expected
    assert not list(tmp_path.rglob(f"{POWER}*"))


def test_command_fetches_what_params_say(options, tmp_path):
    """`workshop data fetch` reads the section `fetch`; files on stdout, attribution on stderr."""
    place = tmp_path / "clone"
    (place / "4_pipeline").mkdir(parents=True)
    content = {"fetch": options.model_dump(exclude_none=True)}
    (place / "4_pipeline" / "params.yaml").write_text(yaml.safe_dump(content))
    environment = {**os.environ, "WORKSHOP_ROOT": str(place), "WORKSHOP_DOWNLOADS": str(tmp_path / "cache")}
    command = [BIN / "workshop", "data", "fetch", "--to", str(tmp_path / "raw")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 5
    assert sources.ATTRIBUTIONS["opsd"] in done.stderr
    (tmp_path / "raw" / POWER).unlink()
    done = subprocess.run([*command, "--mirror", "none"], env=environment, capture_output=True, text=True, timeout=60)
    assert (done.returncode, "Traceback" in done.stderr) == (1, False)
    assert "no such folder" in done.stderr
