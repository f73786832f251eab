"""Open Power System Data: fetched from a local server with files of the same layout."""

from __future__ import annotations

import hashlib
import io
import os
import zipfile

import pytest
from click.testing import CliRunner
from forecast.__main__ import main
from forecast.raw import sources
from forecast.raw.prepare import prepare
from forecast.raw.sources import Release
from forecast.terms.errors import DataError
from forecast.terms.origin import origin_of

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


@pytest.fixture(autouse=True)
def releases(web, tables, monkeypatch):
    """The releases on the local server, with the weather in an archive, as published."""
    web.files = {f"/{POWER}": tables[0], f"/{ARCHIVE}": _zip({MEMBER: tables[1], "README": b"?"})}
    monkeypatch.setitem(sources.RELEASES, POWER, Release(f"{web.url}/{POWER}", _sha256(tables[0])))
    monkeypatch.setitem(sources.RELEASES, WEATHER, Release(f"{web.url}/{ARCHIVE}", _sha256(tables[1]), MEMBER))


@pytest.fixture
def get(tmp_path, monkeypatch):
    """A function that fetches into `raw` with its own cache and without pauses."""
    monkeypatch.setattr("pooch.core.time.sleep", lambda seconds: None)
    return lambda: sources.fetch("opsd", tmp_path / "raw", downloads=tmp_path / "cache")


def test_fetch_puts_the_published_files_with_card_and_sums(get, tables, tmp_path):
    """Both tables are unchanged, the weather extracted; card and origin name the source; the checksums match."""
    paths = get()
    assert [path.read_bytes() for path in paths[:2]] == tables
    assert sorted(tmp_path.joinpath("raw").iterdir()) == sorted(paths)
    card = paths[2].read_text(encoding="utf-8")
    assert sources.ATTRIBUTIONS["opsd"] in card
    assert _sha256(tables[0]) in card
    frame, findings = prepare(tmp_path / "raw", 2013, 2013)
    assert findings["source"] == "opsd"
    origin = origin_of(frame)
    assert (origin.attribution, origin.modelled, origin.measured_name) == (
        sources.ATTRIBUTIONS["opsd"],
        False,
        "measured",
    )


def test_fetch_uses_a_complete_folder_and_the_cache(get, web, tmp_path):
    """A complete folder needs no request and no write; deleted files are restored from the cache without a server."""
    paths = get()
    before = {path: path.stat().st_mtime_ns for path in paths}
    requests = len(web.requests)
    assert {path: path.stat().st_mtime_ns for path in get()} == before
    web.files.clear()
    for path in paths:
        path.unlink()
    assert all(path.exists() for path in get())
    assert len(web.requests) == requests


def test_interrupted_download_is_retried(get, web, tables):
    """After a broken connection or from a busy server, the file is downloaded again in full."""
    web.faults = ["cut", 503, "cut"]
    assert get()[0].read_bytes() == tables[0]


def test_failed_download_is_an_error(get, web, tmp_path, monkeypatch):
    """The error names the URL, its status, and the folder for a copy made by hand."""
    monkeypatch.setattr(sources, "RETRIES", 1)
    web.files.clear()
    with pytest.raises(DataError, match="could not be downloaded") as caught:
        get()
    assert "404" in caught.value.value
    assert str(tmp_path / "cache") in caught.value.next_step
    assert not list((tmp_path / "cache").glob("*.csv"))


WRONG = {
    "path out of the folder": _zip({"../../evil": b"x", MEMBER: b"y"}),
    "other member": _zip({MEMBER.replace("2019", "2020"): b"y"}),
    "other content": _zip({MEMBER: b"y"}),
    "login page": b"<html>log in</html>",
    "cut": _zip({MEMBER: os.urandom(5000)})[:2000],
}


@pytest.mark.parametrize("kind", WRONG)
def test_fetch_rejects_a_wrong_archive_and_downloads_it_again(get, web, tables, tmp_path, kind):
    """Nothing of the archive is written, and the next call downloads it again."""
    good, web.files[f"/{ARCHIVE}"] = web.files[f"/{ARCHIVE}"], WRONG[kind]
    with pytest.raises(DataError, match="differs from the published content") as caught:
        get()
    assert "fetch the file again" in caught.value.next_step
    assert not (tmp_path / "raw" / WEATHER).exists()
    assert not list(tmp_path.rglob("evil"))
    web.files[f"/{ARCHIVE}"] = good
    assert get()[1].read_bytes() == tables[1]


def test_command_follows_params_yaml(web, tmp_path, monkeypatch):
    """`python -m forecast fetch` uses its section, with checksums; files go to stdout, attribution to stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FETCH_DOWNLOADS", str(tmp_path / "cache"))
    (tmp_path / "dvc.yaml").touch()
    (tmp_path / "params.yaml").write_text(f"fetch: {{source: opsd, sha256: {{{POWER}: '{_sha256(b'new')}'}}}}\n")
    web.files[f"/{POWER}"] = b"new"
    done = CliRunner().invoke(main, ["fetch", "--to", str(tmp_path / "raw")])
    assert done.exit_code == 0, done.output
    assert len(done.stdout.splitlines()) == 5
    assert sources.ATTRIBUTIONS["opsd"] in done.stderr
