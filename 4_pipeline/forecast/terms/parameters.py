"""The schema of `params.yaml`, with one section for each pipeline stage."""

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
MAX_DEPTH = 50  # levels of nested lists and mappings; Python's recursion limit allows about 300


def project() -> Path:
    """Return the project's folder: the working directory if it has a dvc.yaml, else the parent of this package."""
    return Path.cwd() if Path("dvc.yaml").exists() else Path(__file__).resolve().parents[2]


class Section(BaseModel):
    """A section of `params.yaml`; unknown keys are errors, and text is not converted to numbers."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    def __getitem__(self, name: str) -> Any:
        return getattr(self, name)


R2 = Annotated[float, Field(ge=-1, le=1, description="on held-out rows")]
Positive = Annotated[float, Field(gt=0)]
Year = Annotated[int, Field(ge=1800, le=2100)]  # any other year is a typo
SCORES = ["r2", *(target.metric("r2") for target in problem.TARGETS)]
QUANTITIES = {quantity.name: quantity for quantity in (*problem.TARGETS, *problem.INPUTS)}


def _mapping(name: str, kind: Any, keys: Iterable[str]) -> Any:
    """Return a section class with these ``keys``, all of the type ``kind``."""
    fields: dict[str, Any] = dict.fromkeys(keys, (kind, ...))
    return create_model(name, __base__=Section, **fields)


def _check_format(text: str) -> str:
    """Return ``text`` if it is a time format that determines the date; otherwise raise ValueError."""
    import pandas as pd  # takes half a second

    if "%Z" in text:
        raise ValueError(
            f"%Z in {text!r}: names such as CEST are ambiguous; write +02:00 (%z), or remove the name and set zone"
        )
    if ("%I" in text) != ("%p" in text):
        raise ValueError(f"{text!r}: %I (1 to 12) and %p (AM or PM) belong together; %H is 0 to 23")
    day = pd.Timestamp("2023-05-16", tz="UTC")
    try:
        is_day = "%" in text and pd.to_datetime(day.strftime(text), format=text, utc=True) == day
    except Exception as error:  # noqa: BLE001 - a repeated directive raises an error of the re module
        raise ValueError(f"{text!r}: {error}") from None
    if not is_day:
        raise ValueError(
            f"{text!r} does not define the day: use %Y, %m and %d; or %Y and %j; or %G, %V and %u; or %Y, %W and %a"
        )
    return text


class TimeColumn(Section):
    """The time column."""

    column: str
    zone: str | None = Field(None, description="time zone of times without an offset: UTC, Europe/Berlin, or +01:00")
    format: Annotated[str, AfterValidator(_check_format)] | None = Field(
        None,
        pattern=r"^([^%]|%[aAbBdfGHIjmMpSuUVwWyYzZ%])+$",
        description="as in strptime, such as %d.%m.%Y %H:%M; by default ISO 8601",
    )
    stamp: Literal["start", "end"] = Field(
        "start", description="whether a time marks the start or the end of its step; `end` for 01:00 to 24:00"
    )


def _check_unit(quantity: Quantity, unit: str) -> str:
    """Return ``unit`` if it converts to the quantity's unit, else raise; pint is not imported for equal units."""
    if unit != quantity.unit:
        quantity.conversion(unit, of_days=problem.STEP == "D")
    return unit


def _columns() -> Any:
    """Return the section class for your own file's columns, whose defaults are the quantities' names and units."""
    fields: dict[str, Any] = {}
    for name, quantity in QUANTITIES.items():
        unit: Any = Annotated[str, AfterValidator(partial(_check_unit, quantity))]
        about = Field(
            description=f"of the same dimension as {quantity.unit or 'a number'}, or an amount per step; parsed by pint"
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
    """Your own file with its columns and units; the defaults describe a processed table (germany.csv)."""

    file: str = Field(description="path of a CSV file, relative to the folder of params.yaml")
    separator: Literal[",", ";", "\t", "|"] = ","
    decimal: Literal[".", ","] = "."
    thousands: Literal[".", ",", " ", "'"] | None = Field(None, description="the thousands separator, as in 1.234.567")
    no_value: list[str] = Field(
        [], description="strings that mark missing values, such as '-' or k.A.; empty cells are always missing"
    )
    lines_before_header: int = Field(0, ge=0, le=1000)
    negative_as_zero: bool = Field(False, description="treat small negative values (from meters at night, say) as zero")
    time: TimeColumn = TimeColumn(column="utc_timestamp")
    columns: Columns = Field(
        {}, validate_default=True, description="the column and unit of each quantity; by default its name and unit"
    )
    capacity: dict[Year, Capacity] | None = Field(
        None,
        min_length=2,
        description=f"{{2018: {_YEAR}, ...}}: capacity of all plants in the file at the end of each year",
    )
    attribution: str = Field("Own data; no attribution was given.", min_length=1, description="shown with the data")
    modelled: bool | None = Field(
        None, description="true if the generation is modelled, like the sample's; false if it was measured"
    )

    @property
    def year_ends(self) -> YearEnds:
        """The values of ``capacity`` by target and year; empty without ``capacity``."""
        ends = self.capacity or {}
        return {name: {str(year): ends[year][name] for year in sorted(ends)} for name in problem.CAPACITY if ends}

    @model_validator(mode="after")
    def _check_marks_differ(self) -> OwnFile:
        if self.thousands == self.decimal:
            raise ValueError(f"decimal and thousands are both {self.decimal!r}")
        return self

    @model_validator(mode="after")
    def _check_columns_differ(self) -> OwnFile:
        names = {self.time.column: "time"}
        for name, each in self.columns:
            if (other := names.setdefault(each.column, name)) != name:
                raise ValueError(f"{other} and {name} have the same column {each.column!r}")
        return self


class Fetch(Section):
    """The source of the raw files."""

    source: Literal["sample", "opsd", "csv"] = Field(
        description="the modelled sample, Open Power System Data, or your own file"
    )
    sha256: dict[Literal["time_series_60min_singleindex.csv", "weather_data.csv"], str] | None = Field(
        None, description="for `opsd`: {FILE: CHECKSUM}, instead of the published checksums"
    )
    csv: OwnFile | None = Field(None, description="for `csv`: the file, its columns and units")

    @model_validator(mode="after")
    def _check_section_of_source(self) -> Fetch:
        if self.source == "csv" and self.csv is None:
            raise ValueError("source: csv requires a csv section that names the file; see own/README.md")
        return self


class Prepare(Section):
    """The first and the last year to keep."""

    first_year: Year
    last_year: Year

    @model_validator(mode="after")
    def _check_year_order(self) -> Prepare:
        if self.first_year > self.last_year:
            raise ValueError(f"first_year {self.first_year} is after last_year {self.last_year}")
        return self


class Split(Section):
    """The size of the held-out period at the end of the data."""

    test_fraction: float = Field(ge=0.05, le=0.5, description="share of the rows")


class Limit(Section):
    """The type and limits of a training stage's parameter; the keys are those of pydantic's `Field`."""

    type: Literal["bool", "float", "int", "str"]
    ge: int | float | None = None
    gt: int | float | None = None
    le: int | float | None = None
    lt: int | float | None = None
    pattern: str | None = None
    description: str | None = None


class Training(Section):
    """The keys of each training stage's section, besides those of its parameters."""

    title: str = Field(description="the model's name in the dashboard")
    limits: dict[str, Limit] = Field(description="limits of each parameter: {alpha: {type: float, gt: 0}}")


class Compare(Section):
    """The metric that ranks the models, computed on the validation weeks."""

    rank_by: Literal[*SCORES]  # type: ignore[valid-type]


class Promote(Section):
    """The limits of the gate's rules."""

    min_gain: float = Field(ge=0, le=1, description="minimum gain in R2 over the champion")
    near_tie: float = Field(
        ge=0, le=1, description="difference in R2 below which a paired test of weekly errors decides"
    )
    alpha: float = Field(gt=0, lt=0.5, description="significance level of the paired test")
    max_gain: float | None = Field(
        default=None, gt=0, le=1, description="maximum gain in R2; a larger gain is too good to be true"
    )
    min_r2: MinR2
    max_night: MaxNight = Field(
        {}, validate_default=True, description="maximum mean prediction at night, in the target's unit"
    )
    max_bias_percent: float = Field(
        gt=0, le=100, description="maximum bias of each target, positive or negative, in % of its mean"
    )
    max_latency_ms: float = Field(gt=0, le=60_000, description="maximum time to predict one row")
    max_size_MB: float = Field(gt=0, le=10_000, description="maximum size of the model's files")
    refit: bool = Field(False, description="whether a model that passed is refitted on all rows for production")


class Report(Section):
    """The week of the report."""

    week: str = Field(pattern=r"^(latest|\d{4}-W\d{2})$", description="`latest`, or a week like 2016-W40")


STAGES: dict[str, type[Section]] = {
    "fetch": Fetch, "prepare": Prepare, "split": Split, "compare": Compare, "promote": Promote, "report": Report,
}  # fmt: skip
NEW_STAGE = "for a training stage, add `train_...` to dvc.yaml; for others, add a class to forecast/terms/parameters.py"


def trainings(folder: Path) -> list[str]:
    """Return the names of the training stages (`train_...`) in dvc.yaml."""
    return [name for name in load(folder / "dvc.yaml")["stages"] if name.startswith("train_")]


def read(file: Path) -> dict[str, Section]:
    """Return the validated parameters of all stages; raise ParameterError for the first invalid one."""
    content, stages = load(file), [*STAGES, *trainings(file.parent)]
    for stage in content:
        if stage not in stages:
            raise _unknown(stage, stages, file, f"; {NEW_STAGE}")
    return {stage: check(stage, content.get(stage), file) for stage in content | STAGES}


def read_stage(file: Path, stage: str) -> Any:
    """Return the validated parameters of one stage; other sections are not validated."""
    content = load(file)
    if stage not in STAGES and stage not in content:
        raise ParameterError(f"The stage `{stage}` does not exist.", expected=", ".join(content), next_step=NEW_STAGE)
    return check(stage, content.get(stage), file)


def check(stage: str, values: object, file: Path = Path(FILE)) -> Any:
    """Return a stage's validated parameters; raise ParameterError with key, value and allowed values.

    A training stage's parameters are validated against the `limits` in its section.
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
        # Report an unknown key first: it may be a misspelt required key.
        first = min(error.errors(), key=lambda each: each["type"] != "extra_forbidden")
    except TypeError as error:
        raise ParameterError(f"{file.name}: {stage}.limits do not match their types.", value=error) from None
    fault = first.get("ctx", {}).get("error")  # raised by a validator above
    place = [word for word in first["loc"] if word != "[key]"]
    name, missing = ".".join(map(str, [stage, *place])), first["type"] == "missing"
    if first["type"] == "extra_forbidden":
        raise _unknown(name, list(_schema(model, place[:-1])["properties"]), file)
    raise ParameterError(
        f"{file.name}: {name} " + ("is missing." if missing else "is invalid."),
        value=None if missing else fault or repr(first["input"]),
        expected=first["msg"] if "[key]" in first["loc"] else allowed(model, *place),
        next_step=f"edit {file}; `python -m forecast params {stage}` shows the allowed values",
    )


def allowed(model: type[Section], *place: str | int) -> str:
    """Describe a key of a section: its type or keys, limits and meaning."""
    schema = _schema(model, place)
    limits = {"enum": "one of", "minimum": "from", "exclusiveMinimum": "above", "maximum": "to"}
    limits |= {"const": "only", "exclusiveMaximum": "below", "pattern": "like", "minProperties": "at least"}
    kind = schema.get("type", "object")
    if kind == "object":
        kind = f"keys {', '.join(schema['properties'])}" if "properties" in schema else "keys"
    parts = [kind] + [f"{limits[name]} {schema[name]}" for name in limits if name in schema]
    return ", ".join(parts) + (f" ({schema['description']})" if "description" in schema else "")


def of_notebook(stage: str, variables: Mapping[str, Any]) -> Any:
    """Return a stage's validated parameters from the variables (`globals()`) that papermill set in its notebook."""
    fields = STAGES[stage].model_fields if stage in STAGES else load(project() / FILE).get(stage) or {}
    about = {name: fields[name] for name in Training.model_fields if name in fields}
    return check(stage, {name: variables[name] for name in fields if name in variables} | about)


def _schema(model: type[Section], place: Sequence[str | int]) -> dict[str, Any]:
    """Return the JSON schema of the key at a path such as ("csv", "columns", "solar_GW", "unit")."""
    schema = model.model_json_schema()
    definitions = schema.get("$defs", {})
    for word in place:
        schema = schema["properties"][word] if "properties" in schema else schema["additionalProperties"]
        schema = schema.get("anyOf", [{}])[0] | schema  # unwrap an optional type
        schema = definitions.get(schema.get("$ref", "").removeprefix("#/$defs/"), {}) | schema
    return schema


def _unknown(name: str, known: list[str], file: Path, also: str = "") -> ParameterError:
    near = difflib.get_close_matches(name.rsplit(".", 1)[-1], known, n=1)
    what = f"{file.name}: {name} is unknown." + (f" Did you mean `{near[0]}`?" if near else "")
    return ParameterError(what, expected=", ".join(known), next_step=f"edit {file}{also}")


class _Constructor(SafeConstructor):
    """DVC's YAML constructor, with the line number in errors about invalid values, such as 30 February."""

    def construct_object(self, node: Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except ValueError as error:
            raise ConstructorError(problem=str(error), problem_mark=node.start_mark) from None


def load(file: Path) -> dict[str, Any]:
    """Return the content of params.yaml or dvc.yaml, not validated; raise ParameterError if it is not a mapping."""
    yaml = YAML(typ="safe", pure=True)  # as in DVC, duplicate keys are errors; `pure` adds line numbers and max_depth
    yaml.Constructor, yaml.max_depth = _Constructor, MAX_DEPTH
    try:
        with file.open(encoding="utf-8-sig") as text:
            content = yaml.load(text)
    except OSError as error:
        raise ParameterError(f"{file} cannot be read.", value=error.strerror) from None
    except (YAMLError, ValueError) as error:
        value = " ".join(str(error).split())
        raise ParameterError(f"{file} is not YAML in UTF-8.", value=value, next_step="correct that line") from None
    if not isinstance(content, dict):
        raise ParameterError(f"{file} has no stages.", value=repr(content), expected="keys: " + ", ".join(STAGES))
    return content
