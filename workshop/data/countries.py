"""Many countries, prepared by the same rule on a Dask cluster, into one folder of Parquet by country and year.

This process cuts the raw files into pieces and sends each with its task, so that workers need not see the files; it
takes the columns back in order and puts them, by country, into files of its own. Then each country is one task more.
At no time is more under way than a few pieces, or countries, a worker.
"""

from __future__ import annotations

import io
import logging
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, closing
from pathlib import Path
from shutil import rmtree
from typing import TYPE_CHECKING, NamedTuple

from workshop.data import coverage, origin, pieces, raw, scan
from workshop.data.files import write_whole
from workshop.data.prepare import NothingInCommon, combine, prepare, require_years
from workshop.data.tables import read_columns, require_columns
from workshop.errors import DataError, ParameterError

if TYPE_CHECKING:
    import pyarrow as pa
    from distributed import Client
    from pandas import DataFrame

logger = logging.getLogger(__name__)

ALL = "all"
AHEAD = 2  # tasks under way a thread: one that runs, one that waits
KEPT = [
    "hours_kept",
    "hours_left_out",
    "absent",
    "doubled",
    "incomplete",
    "unusual",
    "first_hour",
    "last_hour",
    "means",
]


class Gathered(NamedTuple):
    """What the files of a part hold of a country: a file of Arrow's, and the raw files with how many rows each has."""

    file: Path
    rows: dict[Path, int]


class Prepared(NamedTuple):
    """A country's frame as Parquet, by year, and its findings; the frame itself for Germany only."""

    years: dict[int, bytes]
    findings: dict
    frame: DataFrame | None = None


def prepare_countries(
    raw_folder: Path,
    folder: Path,
    first_year: int = 2013,
    last_year: int = 2016,
    countries: str = raw.GERMANY,
    connect: Callable[[], AbstractContextManager[Client]] | None = None,
    *,
    progress: bool = False,
    piece_bytes: int = pieces.PIECE_BYTES,
) -> tuple[DataFrame, dict]:
    """Prepare ``countries`` by the rule of `prepare`, write them into ``folder``, return Germany's frame and findings.

    ``countries`` is codes as in the columns' names, such as `DE,AT`, or `all`: each that has all six columns. Germany,
    which the later stages read, is always among them. Germany alone is prepared here; with others the work goes to the
    cluster that ``connect`` yields a client of, to the same result. ``folder`` then holds
    `country=DE/year=2013/hours.parquet` and so on, columns `schema.COLUMNS`, and nothing of an earlier call; pandas
    and Dask read it as one table. The findings are those of `prepare` for Germany and, in `countries`, of each one; in
    `countries_left_out` they say which ones `all` has left out, and why.

    Raises what `prepare` does, for each country; ParameterError when countries other than Germany are asked of a file
    of one's own; DataError when one that was named lacks a column.
    """
    raw_folder, folder = Path(raw_folder), Path(folder)
    require_years(first_year, last_year)
    codes, left_out = _choose(raw_folder, countries)
    for old in folder.glob("country=*"):
        rmtree(old)
    frame, findings, each = None, {}, {}
    with ExitStack() as stack:
        if codes == [raw.GERMANY]:
            frame, findings = prepare(raw_folder, first_year, last_year)
            results = [(raw.GERMANY, Prepared(_by_year(frame), findings, frame))]
        else:
            client = stack.enter_context(connect())
            years = first_year, last_year
            results = stack.enter_context(closing(_on_cluster(client, raw_folder, codes, years, progress, piece_bytes)))
        for country, result in results:
            if isinstance(result, NothingInCommon):
                if countries != ALL or country == raw.GERMANY:
                    raise result
                left_out[country] = result.what
                continue
            for year, content in result.years.items():
                write_whole(folder / f"country={country}" / f"year={year}" / "hours.parquet", content)
            if codes != [raw.GERMANY]:  # of Germany alone `prepare` has said it
                logger.info("%s: %s", country, coverage.in_words(result.findings))
            each[country] = {name: result.findings[name] for name in KEPT}
            if country == raw.GERMANY:
                frame, findings = result.frame, result.findings
    return frame, findings | {"countries": each, "countries_left_out": left_out}


def _choose(folder: Path, countries: str) -> tuple[list[str], dict[str, str]]:
    """Return the countries to prepare, and why others are left out; raise for one that was named and cannot be."""
    asked = {raw.GERMANY, *countries.split(",")} - {ALL}
    if asked == {raw.GERMANY} and countries != ALL:
        return [raw.GERMANY], {}
    if origin.of_folder(folder).csv is not None:
        raise ParameterError(
            "A file of one's own holds one country.",
            value=f"prepare.countries {countries}",
            expected=f"{raw.GERMANY}, which stands for it",
            next_step="set prepare.countries in params.yaml",
        )
    found = {part: raw.files(folder, part) for part in raw.COLUMNS}
    complete, lacking = raw.complete(found)
    for country in sorted(asked - set(complete)):
        for part, there in found.items():
            mine = [file for file in there if country in file.countries] or there[:1]
            for file in mine:
                require_columns(file.header, [*raw.columns(part, country)], str(file.path), raw.next_step(file.path))
    return (complete, lacking) if countries == ALL else (sorted(asked), {})


def _on_cluster(
    client: Client, folder: Path, codes: list[str], years: tuple[int, int], progress: bool, piece_bytes: int
) -> Iterator[tuple[str, Prepared | NothingInCommon]]:
    """Yield each country's result, in the order of ``codes``."""
    import dask
    from tqdm.auto import tqdm

    threads = sum(worker["nthreads"] for worker in client.scheduler_info(n_workers=-1)["workers"].values())
    ahead = AHEAD * max(threads, 1)
    told = origin.of_folder(folder)
    with ExitStack() as stack:
        # A country's tables are larger than what Dask thinks right for a task.
        stack.enter_context(dask.config.set({"distributed.admin.large-graph-warning-threshold": "1 GB"}))
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="countries-")))
        parts = {part: raw.files(folder, part) for part in raw.COLUMNS}
        size = sum(file.path.stat().st_size for there in parts.values() for file in there)
        with tqdm(total=size, desc="raw files", unit="B", unit_scale=True, disable=not progress) as bar:

            def cut(path: Path) -> Iterator[pieces.Piece]:
                for piece in pieces.cut(path, piece_bytes):
                    yield piece
                    bar.update(len(piece.lines))

            gathered = {part: _gather(client, part, there, codes, scratch, ahead, cut) for part, there in parts.items()}
        calls = ((country, _load(gathered, country), years, told, str(folder)) for country in codes)
        results = stack.enter_context(closing(_in_order(client, _finish, calls, ahead)))
        yield from zip(codes, tqdm(results, "countries", len(codes), disable=not progress), strict=True)


def _gather(
    client: Client, part: str, files: list[raw.File], codes: list[str], scratch: Path, ahead: int, cut: Callable
) -> dict[str, Gathered]:
    """Read the files of a part on the cluster; put each country's columns, under our names, into a file of its own."""
    import pyarrow as pa

    gathered = {country: Gathered(scratch / f"{part}-{country}.arrow", {}) for country in codes}
    ours = ["utc_timestamp", *raw.COLUMNS[part].values()]
    schema = pa.schema([(ours[0], pa.timestamp("us", "UTC")), *((name, pa.float64()) for name in ours[1:])])
    with ExitStack() as stack:
        writers = {
            country: stack.enter_context(pa.ipc.new_stream(str(there.file), schema))
            for country, there in gathered.items()
        }
        for file in files:
            mine = {country: list(raw.columns(part, country)) for country in codes if country in file.countries}
            wanted = ["utc_timestamp", *(column for columns in mine.values() for column in columns)]
            calls = ((piece, wanted) for piece in cut(file.path)) if mine else ()
            count = 0
            try:
                for table in stack.enter_context(closing(_in_order(client, pieces.read, calls, ahead))):
                    for country, columns in mine.items():
                        writers[country].write_table(table.select(["utc_timestamp", *columns]).rename_columns(ours))
                    count += len(table)
            except DataError:
                _tell(file.path, mine.values())
                raise
            if not count:
                _tell(file.path, mine.values())
            for country in mine:
                gathered[country].rows[file.path] = count
    return gathered


def _tell(path: Path, countries: Iterable[list[str]]) -> None:
    """Raise DataError for what is wrong with a file: read here, it is told with its line in the file."""
    for columns in countries:
        read_columns(path, ["utc_timestamp", *columns], next_step=raw.next_step(path))


def _load(gathered: dict[str, dict[str, Gathered]], country: str) -> dict[str, tuple[pa.Table, dict[Path, int]]]:
    """Return a country's tables, by part, with the raw files that their rows come from."""
    import pyarrow as pa

    tables = {}
    for part, countries in gathered.items():
        with pa.OSFile(str(countries[country].file)) as file, pa.ipc.open_stream(file) as stream:
            tables[part] = stream.read_all().combine_chunks(), countries[country].rows
    return tables


def _finish(
    country: str,
    parts: dict[str, tuple[pa.Table, dict[Path, int]]],
    years: tuple[int, int],
    told: origin.Origin,
    folder: str,
) -> Prepared | NothingInCommon:
    """Apply the rule to one country; return NothingInCommon, others are raised."""
    tables = {}
    for part, (table, rows) in parts.items():
        theirs = {ours: f"{country}_{name}" for name, ours in raw.COLUMNS[part].items()}
        start = 0
        for path, count in rows.items():
            frame = scan.to_frame(table.slice(start, count)).rename(columns=theirs)
            tables.setdefault(part, []).append(raw.in_our_units(path, frame, raw.columns(part, country)))
            start += count
    try:
        frame, findings = combine(tables, *years, told, f"The frame of {country} prepared from {folder}")
    except NothingInCommon as error:
        return error
    return Prepared(_by_year(frame), findings, frame if country == raw.GERMANY else None)


def _by_year(frame: DataFrame) -> dict[int, bytes]:
    """Return the years of a frame, each as Parquet."""
    contents = {}
    for year, part in frame.groupby(frame["utc_timestamp"].dt.year):
        buffer = io.BytesIO()
        part.to_parquet(buffer, index=False)
        contents[int(year)] = buffer.getvalue()
    return contents


def _in_order(client: Client, function: Callable, calls: Iterable[tuple], ahead: int) -> Iterator:
    """Yield what ``function`` returns for each of ``calls``, in their order, ``ahead`` of them under way at most.

    Closed early, or after an error, it cancels the others.
    """
    waiting = deque()
    try:
        for call in calls:
            waiting.append(client.submit(function, *call, pure=False))
            if len(waiting) == ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()
