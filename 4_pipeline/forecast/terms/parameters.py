"""The parameters of the experiment: what each section of `params.yaml`, one a pipeline stage, may hold."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, create_model, model_validator
from ruamel.yaml import YAML, YAMLError
from ruamel.yaml.constructor import ConstructorError, SafeConstructor
from ruamel.yaml.nodes import Node

from forecast import problem
from forecast.terms.errors import ParameterError
from forecast.terms.quantities import Quantity, YearEnds

FILE = "params.yaml"
MAX_DEPTH = 50  # of nested lists and mappings; Python's recursion ends at some 300


def project() -> Path:
    """Return the project's folder: the working one if it has a dvc.yaml, else the one that this package lies in."""
    return Path.cwd() if Path("dvc.yaml").exists() else Path(__file__).resolve().parents[2]


class Section(BaseModel):
    """A section of `params.yaml`. An unknown key is an error, and text is not taken for a number."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    def __getitem__(self, name: str) -> Any:
        return getattr(self, name)


R2 = Annotated[float, Field(ge=-1, le=1, description="held out")]
Positive = Annotated[float, Field(gt=0)]
Year = Annotated[int, Field(ge=1900, le=2100)]
SCORES = ["r2", *(target.metric("r2") for target in problem.TARGETS)]
QUANTITIES = {quantity.name: quantity for quantity in (*problem.TARGETS, *problem.INPUTS)}


def _mapping(name: str, kind: Any, keys: Iterable[str]) -> Any:
    """Return the class of a mapping with these keys, each of a kind."""
    fields: dict[str, Any] = dict.fromkeys(keys, (kind, ...))
    return create_model(name, __base__=Section, **fields)


def _check_format(text: str) -> str:
    """Return a format of times that names the day in one way; raise ValueError for any other."""
    import pandas as pd  # takes half a second

    if "%Z" in text:
        raise ValueError(
            f"%Z in {text!r}: names such as CEST are no offsets; write +02:00 (%z), or no name and set zone"
        )
    if ("%I" in text) != ("%p" in text):
        raise ValueError(f"{text!r}: %I (1 to 12) and %p (AM or PM) need one another; %H is 0 to 23")
    day = pd.Timestamp("2023-05-16", tz="UTC")
    try:
        is_day = "%" in text and pd.to_datetime(day.strftime(text), format=text, utc=True) == day
    except Exception as error:  # noqa: BLE001 - a directive that occurs twice is an error of regular expressions
        raise ValueError(f"{text!r}: {error}") from None
    if not is_day:
        raise ValueError(f"{text!r} names no day: %Y, %m and %d do; or %Y and %j; or %G, %V and %u; or %Y, %W and %a")
    return text


class TimeColumn(Section):
    """The column of times."""

    column: str
    zone: str | None = Field(None, description="of times without an offset: UTC, Europe/Berlin, or +01:00")
    format: Annotated[str, AfterValidator(_check_format)] | None = Field(
        None,
        pattern=r"^([^%]|%[aAbBdfGHIjmMpSuUVwWyYzZ%])+$",
        description="as in strptime, such as %d.%m.%Y %H:%M; by default ISO 8601",
    )
    stamp: Literal["start", "end"] = Field("start", description="of the step; times 01:00 to 24:00 are ends")


def _check_unit(quantity: Quantity, unit: str) -> str:
    """Return a unit that can be converted to that of a quantity; for the same one pint is not imported."""
    if unit != quantity.unit:
        quantity.conversion(unit, of_days=problem.STEP == "D")
    return unit


def _columns() -> Any:
    """Return the class of the columns of an own file; by default each has its own name, in its own unit."""
    fields: dict[str, Any] = {}
    for name, quantity in QUANTITIES.items():
        unit: Any = Annotated[str, AfterValidator(partial(_check_unit, quantity))]
        about = Field(
            description=f"of the dimension of {quantity.unit or 'a number'}, or its amount in a step; pint reads it"
        )
        column: Any = create_model(name, __base__=Section, column=(str, ...), unit=(unit, about))
        default = {"column": name, "unit": quantity.unit}
        fields[name] = column, column.model_validate(default)
    return create_model("Columns", __base__=Section, **fields)


if TYPE_CHECKING:
    from typing import Any as Capacity
    from typing import Any as Columns
    from typing import Any as MaxNight
    from typing import Any as MinR2
else:
    Columns, Capacity = _columns(), _mapping("Capacity", Positive, problem.CAPACITY)
    MinR2 = _mapping("MinR2", R2, [target.key for target in problem.TARGETS])
    MaxNight = _mapping("MaxNight", Positive, [target.key for target in problem.TARGETS if target.by_day])
_YEAR = str(dict.fromkeys(problem.CAPACITY, 1.2)).replace("'", "")


class OwnFile(Section):
    """An own file: its columns and their units. The defaults describe a processed table (germany.csv)."""

    file: str = Field(description="path of a CSV file, relative to the folder of params.yaml")
    separator: Literal[",", ";", "\t", "|"] = ","
    decimal: Literal[".", ","] = "."
    thousands: Literal[".", ",", " ", "'"] | None = Field(None, description="the mark in 1.234.567")
    no_value: list[str] = Field([], description="marks of absent values, such as '-' or k.A.; empty cells need none")
    lines_before_header: int = Field(0, ge=0, le=1000)
    negative_as_zero: bool = Field(False, description="small values below zero, as meters write them at night")
    time: TimeColumn = TimeColumn(column="utc_timestamp")
    columns: Columns = Field(
        {}, validate_default=True, description="of the quantities; by default each has its own name, in its own unit"
    )
    capacity: dict[Year, Capacity] | None = Field(
        None, min_length=2, description=f"{{2018: {_YEAR}, ...}} of all plants that the file counts, at the years' ends"
    )
    attribution: str = Field("Own data; no attribution was given.", min_length=1, description="shown with the data")
    modelled: bool | None = Field(None, description="whether the generation is modelled, as the sample's, or measured")

    @property
    def year_ends(self) -> YearEnds:
        """The figures of ``capacity`` by target and year; none if none were given."""
        ends = self.capacity or {}
        return {name: {str(year): ends[year][name] for year in sorted(ends)} for name in problem.CAPACITY if ends}

    @model_validator(mode="after")
    def _tell_marks_apart(self) -> OwnFile:
        if self.thousands == self.decimal:
            raise ValueError(f"the mark {self.decimal!r} for both decimal and thousands")
        return self

    @model_validator(mode="after")
    def _read_each_column_once(self) -> OwnFile:
        names = {self.time.column: "time"}
        for name, each in self.columns:
            if (other := names.setdefault(each.column, name)) != name:
                raise ValueError(f"the column {each.column!r} for both {other} and {name}")
        return self


class Fetch(Section):
    """Where the raw files come from."""

    source: Literal["sample", "opsd", "csv"] = Field(description="modelled sample; Open Power System Data; own file")
    sha256: dict[Literal["time_series_60min_singleindex.csv", "weather_data.csv"], str] | None = Field(
        None, description="for `opsd`: {FILE: CHECKSUM}, instead of the published"
    )
    csv: OwnFile | None = Field(None, description="for `csv`: the file, its columns and units")

    @model_validator(mode="after")
    def _require_section_of_source(self) -> Fetch:
        if self.source == "csv" and self.csv is None:
            raise ValueError("source: csv without the section csv, which names the file: see own/README.md")
        return self


class Prepare(Section):
    """Which years are kept, both ends included."""

    first_year: int = Field(ge=1980, le=2100)
    last_year: int = Field(ge=1980, le=2100)

    @model_validator(mode="after")
    def _order_years(self) -> Prepare:
        if self.first_year > self.last_year:
            raise ValueError(f"first_year {self.first_year} is after last_year {self.last_year}")
        return self


class Split(Section):
    """How much of the end of time is held out."""

    test_fraction: float = Field(ge=0.05, le=0.5, description="share of the rows")


class Limit(Section):
    """What a value of a training may be: its type, and limits in the words of pydantic's `Field`."""

    type: Literal["bool", "float", "int", "str"]
    ge: int | float | None = None
    gt: int | float | None = None
    le: int | float | None = None
    lt: int | float | None = None
    pattern: str | None = None
    description: str | None = None


class Training(Section):
    """What the section of a training holds beside its values."""

    title: str = Field(description="what the dashboard calls the model")
    limits: dict[str, Limit] = Field(description="of each value: {alpha: {type: float, gt: 0}}")


class Compare(Section):
    """Which score on the validation weeks ranks the models."""

    rank_by: Literal[*SCORES]  # type: ignore[valid-type]


class Promote(Section):
    """The limits of the gate's rules."""

    min_gain: float = Field(ge=0, le=1, description="in R2 over the model in production")
    near_tie: float = Field(ge=0, le=1, description="with R2 this close to the champion's, weekly errors decide")
    alpha: float = Field(gt=0, lt=0.5, description="highest probability that smaller weekly errors are chance")
    max_gain: float | None = Field(default=None, gt=0, le=1, description="in R2 at once: more is too good to be true")
    min_r2: MinR2
    max_night: MaxNight = Field(
        {}, validate_default=True, description="mean prediction while the sun is down, in the unit of the target"
    )
    max_bias_percent: float = Field(
        gt=0, le=100, description="mean error of each target, either sign, in % of its mean"
    )
    max_latency_ms: float = Field(gt=0, le=60_000, description="for the prediction of one row")
    max_size_MB: float = Field(gt=0, le=10_000, description="of the model's files")
    refit: bool = Field(False, description="whether what passed is fitted again, on all rows, for production")


class Report(Section):
    """Which week the report is on."""

    week: str = Field(pattern=r"^(latest|\d{4}-W\d{2})$", description="`latest`, or one like 2016-W40")


STAGES: dict[str, type[Section]] = {
    "fetch": Fetch, "prepare": Prepare, "split": Split, "compare": Compare, "promote": Promote, "report": Report,
}  # fmt: skip
NEW_STAGE = "a training has a stage `train_...` in dvc.yaml, any other stage a class in forecast/terms/parameters.py"


def trainings(folder: Path) -> list[str]:
    """Return the names of the stages of dvc.yaml that train a model, each `train_...`."""
    return [name for name in load(folder / "dvc.yaml")["stages"] if name.startswith("train_")]


def read(file: Path) -> dict[str, Section]:
    """Return the checked parameters of all stages; raise ParameterError for the first that is not allowed."""
    content, known = load(file), [*STAGES, *trainings(file.parent)]
    for stage in content:
        if stage not in known:
            raise _unknown(stage, known, file, f"; {NEW_STAGE}")
    return {stage: check(stage, content.get(stage), file) for stage in content | STAGES}


def read_stage(file: Path, stage: str) -> Any:
    """Return the checked parameters of one stage, without a check of the other sections."""
    content = load(file)
    if stage not in STAGES and stage not in content:
        raise ParameterError(f"There is no stage `{stage}`.", expected=", ".join(content), next_step=NEW_STAGE)
    return check(stage, content.get(stage), file)


def check(stage: str, values: object, file: Path = Path(FILE)) -> Any:
    """Return the parameters of a stage as its model; raise ParameterError naming key, value and what is allowed.

    Those of a training are its values alone; its `limits` say what they may be.
    """
    model = STAGES.get(stage, Training)
    try:
        if model is Training and isinstance(values, dict):
            about = {name: values[name] for name in Training.model_fields if name in values}
            limits = Training.model_validate(about).limits
            fields = {name: (each.type, Field(**each.model_dump(exclude={"type"}))) for name, each in limits.items()}
            model = create_model(stage, __base__=Section, **fields)  # type: ignore[call-overload]
            values = {name: values[name] for name in values if name not in about}
        return model.model_validate(values)
    except ValidationError as error:
        # An unknown key first: it may be the missing one, misspelt.
        first = min(error.errors(), key=lambda each: each["type"] != "extra_forbidden")
    except TypeError as error:
        raise ParameterError(f"{file.name}: {stage}.limits do not fit their types.", value=error) from None
    fault = first.get("ctx", {}).get("error")  # of a validator here
    place = [word for word in first["loc"] if word != "[key]"]
    name, missing = ".".join(map(str, [stage, *place])), first["type"] == "missing"
    if first["type"] == "extra_forbidden":
        raise _unknown(name, list(_schema(model, place[:-1])["properties"]), file)
    raise ParameterError(
        f"{file.name}: {name} " + ("is missing." if missing else "is not allowed."),
        value=None if missing else fault or repr(first["input"]),
        expected=first["msg"] if "[key]" in first["loc"] else allowed(model, *place),
        next_step=f"edit {file}; `python -m forecast params {stage}` shows what is allowed",
    )


def allowed(model: type[Section], *place: str | int) -> str:
    """Describe what a place of a section may hold: type or keys, limits and meaning."""
    schema = _schema(model, place)
    limits = {"enum": "one of", "minimum": "from", "exclusiveMinimum": "above", "maximum": "to"}
    limits |= {"const": "only", "exclusiveMaximum": "below", "pattern": "like", "minProperties": "at least"}
    kind = schema.get("type", "object")
    if kind == "object":
        kind = f"keys {', '.join(schema['properties'])}" if "properties" in schema else "keys"
    words = [kind] + [f"{limits[name]} {schema[name]}" for name in limits if name in schema]
    return ", ".join(words) + (f" ({schema['description']})" if "description" in schema else "")


def of_notebook(stage: str, variables: Mapping[str, Any]) -> Any:
    """Return the checked parameters of a stage from a notebook's variables (`globals()`), which papermill has set."""
    known = STAGES[stage].model_fields if stage in STAGES else load(project() / FILE).get(stage) or {}
    about = {name: known[name] for name in Training.model_fields if name in known}
    return check(stage, {name: variables[name] for name in known if name in variables} | about)


def _schema(model: type[Section], place: Sequence[str | int]) -> dict[str, Any]:
    """Return the JSON schema of a place, such as ("csv", "columns", "solar_GW", "unit")."""
    schema = model.model_json_schema()
    named = schema.get("$defs", {})
    for word in place:
        schema = schema["properties"][word] if "properties" in schema else schema["additionalProperties"]
        schema = schema.get("anyOf", [{}])[0] | schema  # the first of "... | None"
        schema = named.get(schema.get("$ref", "").removeprefix("#/$defs/"), {}) | schema
    return schema


def _unknown(name: str, known: list[str], file: Path, also: str = "") -> ParameterError:
    near = difflib.get_close_matches(name.rsplit(".", 1)[-1], known, n=1)
    what = f"{file.name}: {name} is unknown." + (f" Did you mean `{near[0]}`?" if near else "")
    return ParameterError(what, expected=", ".join(known), next_step=f"edit {file}{also}")


class _Constructor(SafeConstructor):
    """DVC's, with the line of a value that Python cannot hold, such as 30 February."""

    def construct_object(self, node: Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except ValueError as error:
            raise ConstructorError(problem=str(error), problem_mark=node.start_mark) from None


def load(file: Path) -> dict[str, Any]:
    """Return the content of `params.yaml`, unchecked; raise ParameterError when it is no YAML mapping."""
    yaml = YAML(typ="safe", pure=True)  # DVC's reader: a doubled key is an error; in Python it knows lines and depth
    yaml.Constructor, yaml.max_depth = _Constructor, MAX_DEPTH
    try:
        with file.open(encoding="utf-8-sig") as text:
            content = yaml.load(text)
    except OSError as error:
        raise ParameterError(f"{file} cannot be read.", value=error.strerror) from None
    except (YAMLError, ValueError) as error:
        value = " ".join(str(error).split())
        raise ParameterError(f"{file} is not YAML in UTF-8.", value=value, next_step="correct that place") from None
    if not isinstance(content, dict):
        raise ParameterError(f"{file} holds no stages.", value=repr(content), expected="keys: " + ", ".join(STAGES))
    return content
