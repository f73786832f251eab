"""Open Power System Data: fetched from a server of our own that serves files of its layout."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import textwrap
import zipfile

import pytest
import yaml
from data.large import write_full_size
from workplace import BIN

from workshop.data import opsd, origin, sources
from workshop.data.prepare import prepare
from workshop.errors import DataError
from workshop.parameters import Address, Addresses, Fetch

MEMBER = "opsd-weather_data-2019-04-09/weather_data.csv"
POWER, WEATHER = sources.POWER_FILE, sources.WEATHER_FILE
ARCHIVE = "opsd-weather_data-2019-04-09.zip"


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
    """Where the two files are: on the test's server, weather in an archive as the publisher packs it."""
    power, weather = tables
    web.files = {f"/time_series/{POWER}": power, f"/weather_data/{ARCHIVE}": _zip({MEMBER: weather, "README": b"?"})}
    return Fetch(
        source="opsd",
        addresses=Addresses(
            power=[Address(url=f"{web.url}/time_series/{POWER}", sha256=_sha256(power))],
            weather=[Address(url=f"{web.url}/weather_data/{ARCHIVE}", sha256=_sha256(weather), member=MEMBER)],
        ),
    )


@pytest.fixture
def get(options, tmp_path):
    """A function that fetches into `raw` with a cache of the test's own, and without pauses."""

    def call(options=options, **more):
        return sources.fetch("opsd", tmp_path / "raw", options, cache=tmp_path / "cache", wait_seconds=0.01, **more)

    return call


def test_fetch_puts_the_published_files_with_card_and_sums(get, tables, tmp_path):
    """Both tables to the byte, weather out of its archive; card and origin name the source; the sums agree."""
    paths = get()
    assert [path.read_bytes() for path in paths[:2]] == tables
    assert sorted(tmp_path.joinpath("raw").iterdir()) == sorted(paths)
    card = paths[2].read_text(encoding="utf-8")
    assert opsd.ATTRIBUTION in card
    assert _sha256(tables[0]) in card
    for line in paths[4].read_text().splitlines():
        total, name = line.split("  ")
        assert _sha256((tmp_path / "raw" / name).read_bytes()) == total
    told = origin.of_folder(tmp_path / "raw")
    assert (told.source, told.modelled, told.attribution) == ("opsd", False, opsd.ATTRIBUTION)


def test_fetched_files_are_prepared_and_carry_their_attribution(get, tmp_path):
    """The loader's files go through preparation, and the frame says where it comes from."""
    get()
    frame, findings = prepare(tmp_path / "raw")
    assert findings["source"] == "opsd"
    assert origin.of_frame(frame).attribution == opsd.ATTRIBUTION
    assert origin.of_frame(frame).measured_name == "measured"


def test_fetch_leaves_a_complete_folder_alone_and_needs_no_network_after(get, web, tmp_path):
    """Complete: no request, no write. Folder gone: the cache is enough, without any server."""
    paths = get()
    before = {path: path.stat().st_mtime_ns for path in paths}
    asked = len(web.requests)
    assert {path: path.stat().st_mtime_ns for path in get()} == before
    web.files.clear()
    for path in paths:
        path.unlink()
    assert all(path.exists() for path in get())
    assert len(web.requests) == asked


def test_fetch_takes_a_mirror_instead_of_the_addresses(get, options, web, tables):
    """A mirror's address with the files' names below it: only that one is asked."""
    web.files = {f"/copies/{name.rsplit('/', 1)[-1]}": content for name, content in web.files.items()}
    paths = get(options.model_copy(update={"mirror": f"{web.url}/copies/"}))
    assert [path.read_bytes() for path in paths[:2]] == tables
    assert {path for path, _ in web.requests} == set(web.files)


@pytest.mark.parametrize("unpacked", [False, True])
def test_fetch_takes_a_local_folder(get, options, web, tables, tmp_path, unpacked):
    """Copies in a folder, weather packed or unpacked; relative folders start where the caller says."""
    (tmp_path / "stick").mkdir()
    (tmp_path / "stick" / POWER).write_bytes(tables[0])
    if unpacked:
        (tmp_path / "stick" / WEATHER).write_bytes(tables[1])
    else:
        (tmp_path / "stick" / ARCHIVE).write_bytes(web.files[f"/weather_data/{ARCHIVE}"])
    paths = get(options.model_copy(update={"mirror": "stick"}), base=tmp_path)
    assert [path.read_bytes() for path in paths[:2]] == tables
    assert web.requests == []


def test_fetch_tells_what_a_local_folder_lacks(get, options, tmp_path):
    """No folder, and a folder without the file: both are told with what was expected."""
    wanted = options.model_copy(update={"mirror": "stick"})
    with pytest.raises(DataError, match="no such folder"):
        get(wanted, base=tmp_path)
    (tmp_path / "stick").mkdir()
    (tmp_path / "stick" / "other.csv").touch()
    with pytest.raises(DataError, match="does not hold the file") as caught:
        get(wanted, base=tmp_path)
    assert caught.value.value == "other.csv"
    assert POWER in caught.value.expected


def test_fetch_refuses_a_local_copy_of_other_content(get, options, tables, tmp_path):
    """A copy with another checksum never gets the final name."""
    (tmp_path / "stick").mkdir()
    (tmp_path / "stick" / POWER).write_bytes(tables[0] + b"x")
    with pytest.raises(DataError, match="not the published one"):
        get(options.model_copy(update={"mirror": "stick"}), base=tmp_path)
    assert not list((tmp_path / "raw").iterdir())


def test_fetch_never_mixes_two_sources(get, options, web, raw_copy, tmp_path):
    """A folder of the sample, and a fetch that fails half-way: nothing of the sample is left to be mistaken."""
    assert raw_copy == tmp_path / "raw"
    web.files.pop(f"/weather_data/{ARCHIVE}")
    with pytest.raises(DataError, match="could not be fetched"):
        get()
    assert [path.name for path in (tmp_path / "raw").iterdir()] == [POWER]
    with pytest.raises(DataError, match="There is no file"):
        prepare(tmp_path / "raw")


def test_fetch_goes_to_the_next_address(get, options, web, tables, tmp_path):
    """The list of addresses is worked down; when none works, each one's fault is told."""
    gone = options.addresses.power[0].model_copy(update={"url": f"{web.url}/old/{POWER}"})
    both = options.addresses.model_copy(update={"power": [gone, *options.addresses.power]})
    first = get(options.model_copy(update={"addresses": both}))[0]
    assert first.read_bytes() == tables[0]
    for folder in ("cache", "raw"):
        shutil.rmtree(tmp_path / folder)
    neither = options.addresses.model_copy(update={"power": [gone, gone]})
    with pytest.raises(DataError, match="None of 2 addresses gave") as caught:
        get(options.model_copy(update={"addresses": neither}))
    assert caught.value.value.count("HTTP 404") == 2


HOSTILE = {
    "path out of the folder": ({"../../evil": b"x", MEMBER: b"y"}, "outside its folder"),
    "absolute path": ({"/etc/evil": b"x", MEMBER: b"y"}, "outside its folder"),
    "path of another system": ({"C:\\evil": b"x", MEMBER: b"y"}, "outside its folder"),
    "bomb": ({MEMBER: b"0" * 50_000_000}, "out of proportion"),
    "other member": ({MEMBER.replace("2019", "2020"): b"y"}, r"lacks .* \(nearest: opsd-weather_data-2020"),
    "other content": ({MEMBER: b"y"}, "not the published one"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_fetch_refuses_an_archive_that_is_wrong_or_hostile(get, web, tmp_path, kind):
    """Nothing of it is written, it does not stay in the cache, and the error says what is wrong with it."""
    members, words = HOSTILE[kind]
    web.files[f"/weather_data/{ARCHIVE}"] = _zip(members)
    with pytest.raises(DataError, match=words) as caught:
        get()
    assert caught.value.next_step
    assert [path.name for path in (tmp_path / "raw").iterdir()] == [POWER]
    assert not (tmp_path / "cache" / ARCHIVE).exists()
    assert not list(tmp_path.rglob("evil"))


@pytest.mark.parametrize("damage", ["page", "cut", "bytes", "encrypted"])
def test_fetch_refuses_an_archive_that_cannot_be_unpacked(get, web, tables, tmp_path, damage):
    """A login page, a file that ends early, bytes turned over, a password: told as such."""
    whole = bytearray(web.files[f"/weather_data/{ARCHIVE}"])
    damaged = {"page": b"<html>log in</html>", "cut": bytes(whole[: len(whole) // 2])}
    if damage == "bytes":
        middle = whole.index(MEMBER.encode()) + len(MEMBER) + 200
        whole[middle : middle + 20] = b"\xff" * 20
    if damage == "encrypted":
        whole[6] |= 1
        whole[whole.index(b"PK\x01\x02") + 8] |= 1
    web.files[f"/weather_data/{ARCHIVE}"] = damaged.get(damage, bytes(whole))
    with pytest.raises(DataError, match=r"cannot be unpacked|not the published one"):
        get()
    assert not (tmp_path / "raw" / WEATHER).exists()


def test_fetch_mends_a_cache_with_a_damaged_archive(get, web, tmp_path):
    """An archive has no published checksum; once its table is wrong it is fetched again, once."""
    get()
    (tmp_path / "cache" / ARCHIVE).write_bytes(b"damaged")
    (tmp_path / "raw" / WEATHER).unlink()
    asked = len(web.requests)
    get()
    assert len(web.requests) == asked + 1


def test_fetch_tells_a_full_disk(options, tmp_path):
    """The system refuses to write into the folder: one error in words, and no half file under its name."""
    script = textwrap.dedent(f"""
        import resource
        from pathlib import Path
        from workshop.data import sources
        from workshop.errors import DataError
        from workshop.parameters import Fetch
        options = Fetch.model_validate_json({options.model_dump_json()!r})
        folder = Path({str(tmp_path)!r})
        sources.fetch("opsd", folder / "raw", options, cache=folder / "cache")
        for path in (folder / "raw").iterdir():
            path.unlink()
        resource.setrlimit(resource.RLIMIT_FSIZE, (5_000, 5_000))
        try:
            sources.fetch("opsd", folder / "raw", options, cache=folder / "cache")
        except DataError as error:
            print(error)
    """)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert f"{POWER} could not be written" in done.stdout
    assert not list((tmp_path / "raw").iterdir())


def test_published_addresses_are_those_of_the_two_releases():
    """The committed hashes and addresses are the publisher's, and the attribution names both releases."""
    (power,), (weather,) = opsd.ADDRESSES.power, opsd.ADDRESSES.weather
    assert power.url.endswith(f"/time_series/2019-06-05/{POWER}")
    assert weather.member == MEMBER
    for doi in ("10.25832/time_series/2019-06-05", "10.25832/weather_data/2019-04-09"):
        assert f"https://doi.org/{doi}." in opsd.ATTRIBUTION


def test_command_fetches_what_params_say(options, tables, tmp_path):
    """`workshop data fetch` reads source, addresses and mirror; files on stdout, attribution on stderr."""
    place = tmp_path / "clone"
    (place / "4_pipeline").mkdir(parents=True)
    content = {"fetch": options.model_dump(exclude_none=True)}
    (place / "4_pipeline" / "params.yaml").write_text(yaml.safe_dump(content))
    environment = {**os.environ, "WORKSHOP_ROOT": str(place), "WORKSHOP_DOWNLOADS": str(tmp_path / "cache")}
    command = [BIN / "workshop", "data", "fetch", "--to", str(tmp_path / "raw")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 5
    assert opsd.ATTRIBUTION in done.stderr
    assert (tmp_path / "cache" / ARCHIVE).exists()
    done = subprocess.run([*command, "--mirror", "none"], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, "a complete folder needs no mirror"
    (tmp_path / "raw" / POWER).unlink()
    done = subprocess.run([*command, "--mirror", "none"], env=environment, capture_output=True, text=True, timeout=60)
    assert (done.returncode, "Traceback" in done.stderr) == (1, False)
    assert "no such folder" in done.stderr


@pytest.mark.soak
def test_files_of_true_size_are_fetched_and_prepared_in_bounded_memory(tmp_path):
    """Power with 303 columns, weather of 37 years: fetching takes no memory to speak of, preparing no file's size."""
    made = _true_size(tmp_path / "copies")
    script = textwrap.dedent(f"""
        import json, re, time
        from pathlib import Path
        from workshop.data import sources
        from workshop.parameters import Fetch
        options = Fetch.model_validate_json({made.model_dump_json()!r})
        # Not ru_maxrss, which a new process takes over from its parent.
        peak = lambda: int(re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1]) // 1024
        folder = Path({str(tmp_path / "raw")!r})
        told = {{"start": peak()}}
        before = time.monotonic()
        sources.fetch("opsd", folder, options)
        told |= {{"fetched": peak(), "fetch_seconds": time.monotonic() - before}}
        from workshop.data.prepare import prepare
        told["imported"] = peak()
        before = time.monotonic()
        frame, findings = prepare(folder)
        told |= {{"prepared": peak(), "prepare_seconds": time.monotonic() - before, "hours": len(frame)}}
        print(json.dumps(told))
    """)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=600, check=True)
    told = json.loads(done.stdout)
    sizes = {path.name: path.stat().st_size // 10**6 for path in (tmp_path / "raw").iterdir()}
    print(told, sizes)
    assert 34_000 < told["hours"] < 35_064
    assert told["fetched"] - told["start"] < 60
    assert told["prepared"] - told["imported"] < 250


def _true_size(folder):
    """Write files of the layout and size of the two releases into ``folder``, and return where they are."""
    write_full_size(folder)
    with zipfile.ZipFile(folder / ARCHIVE, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.write(folder / WEATHER, MEMBER)
    sums = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in (POWER, WEATHER)}
    (folder / WEATHER).unlink()
    return Fetch(
        source="opsd",
        mirror=str(folder),
        addresses=Addresses(
            power=[Address(url=f"http://host/{POWER}", sha256=sums[POWER])],
            weather=[Address(url=f"http://host/{ARCHIVE}", sha256=sums[WEATHER], member=MEMBER)],
        ),
    )
