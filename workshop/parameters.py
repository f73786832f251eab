"""What the experiment is: `params.yaml`, its keys, types and allowed values; one model a pipeline stage."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from workshop.errors import ParameterError


class Stage(BaseModel):
    """The parameters of one stage; an unknown key is an error, and text is no number."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


Seed = Annotated[int, Field(ge=0, lt=2**32, description="of the random numbers")]


Year = Annotated[int, Field(ge=1900, le=2100)]


class Address(Stage):
    """Where a file can be had, and which content is accepted from there."""

    url: str = Field(pattern=r"^https?://[^/\s]+/\S+$", description="of the CSV file, or of a zip archive")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$", description="of the CSV file, also when it comes in an archive")
    member: str | None = Field(None, description="the CSV file's path in the archive; none when there is no archive")


class Addresses(Stage):
    """Where the two raw files of Open Power System Data can be had, the first choice first."""

    power: list[Address] = Field(min_length=1)
    weather: list[Address] = Field(min_length=1)


class PowerColumn(Stage):
    """A column of generation, the mean of an hour."""

    column: str
    unit: Literal["GW", "MW", "kW", "W"]


class SpeedColumn(Stage):
    """A column of wind speed."""

    column: str
    unit: Literal["m/s", "km/h", "kn", "mph"]


class TemperatureColumn(Stage):
    """A column of air temperature."""

    column: str
    unit: Literal["C", "K", "F"]


class RadiationColumn(Stage):
    """A column of radiation: the mean of an hour, or what falls in it."""

    column: str
    unit: Literal["W/m2", "kW/m2", "J/m2", "kJ/m2", "MJ/m2", "Wh/m2", "kWh/m2"]


class TimeColumn(Stage):
    """The column of times, each the beginning of an hour."""

    column: str
    zone: str | None = Field(
        None, description="of times without an offset: UTC, Europe/Berlin, or +01:00 where the clock is never changed"
    )
    format: str | None = Field(None, description="as in strptime, such as %d.%m.%Y %H:%M; by default ISO 8601")


class YearEnd(Stage):
    """Installed capacity in GW on 31 December of a year."""

    solar_GW: float = Field(gt=0, description="of all solar plants that the file counts")
    wind_GW: float = Field(gt=0, description="of all wind turbines that the file counts")


class OwnFile(Stage):
    """A file of one's own: what its columns are and their units. By default it is a processed table (germany.csv)."""

    file: str = Field(description="path of a CSV file, relative to the folder of params.yaml")
    separator: Literal[",", ";", "\t", "|"] = ","
    decimal: Literal[".", ","] = "."
    time: TimeColumn = TimeColumn(column="utc_timestamp")
    solar_GW: PowerColumn = PowerColumn(column="solar_GW", unit="GW")
    wind_GW: PowerColumn = PowerColumn(column="wind_GW", unit="GW")
    windspeed: SpeedColumn = SpeedColumn(column="windspeed", unit="m/s")
    temperature: TemperatureColumn = TemperatureColumn(column="temperature", unit="C")
    rad_horizontal: RadiationColumn = RadiationColumn(column="rad_horizontal", unit="W/m2")
    rad_diffuse: RadiationColumn = RadiationColumn(column="rad_diffuse", unit="W/m2")
    capacity: dict[Year, YearEnd] | None = Field(
        None,
        min_length=2,
        description="a year and what stood at its end, {2018: {solar_GW: 1.2, wind_GW: 3.4}}, from the year before the"
        " data to its last; without it, Germany's of 2012 to 2016",
    )
    attribution: str = Field("Own data; no attribution was given.", min_length=1, description="shown with the data")


class Fetch(Stage):
    """Where the raw files come from."""

    source: Literal["sample", "opsd", "csv"] = Field(
        description="the embedded sample, which is modelled; Open Power System Data; a file of your own"
    )
    mirror: str | None = Field(None, description="for `opsd`: a folder, or an address, that holds copies of its files")
    addresses: Addresses | None = Field(None, description="for `opsd`: instead of the publisher's")
    csv: OwnFile | None = Field(None, description="for `csv`: the file, its columns and units")


class Prepare(Stage):
    """Which years are kept, both ends included, and of which countries."""

    first_year: int = Field(ge=1980, le=2100)
    last_year: int = Field(ge=1980, le=2100)
    countries: str = Field(
        pattern=r"^(all|[A-Z]{2}(,[A-Z]{2})*)$",
        description="`DE`; more of them with commas and in quotes, 'DE,AT'; or `all`. More than DE need the cluster",
    )


class Split(Stage):
    """How much of the end of time is held out."""

    test_fraction: float = Field(ge=0.05, le=0.5, description="share of the hours")


class TrainLinreg(Stage):
    """A linear regression."""

    fit_intercept: bool


class TrainRf(Stage):
    """A random forest."""

    n_estimators: int = Field(ge=1, le=2000, description="trees")
    max_depth: int = Field(ge=1, le=100, description="levels of a tree")
    seed: Seed


class TrainGradientBoosting(Stage):
    """Histogram gradient boosting of capacity factors, its hyperparameters searched."""

    candidates: int = Field(ge=1, le=1000, description="combinations of hyperparameters that are tried")
    folds: int = Field(ge=2, le=20, description="of the time that it learns from")
    coverage: float = Field(gt=0, lt=1, description="share of the hours that the error band shall hold")
    seed: Seed


class TrainKeras(Stage):
    """A small dense network."""

    epochs: int = Field(ge=1, le=1000, description="passes over the data, at most")
    hidden_units: int = Field(ge=1, le=4096, description="in each of two layers")
    learning_rate: float = Field(gt=0, le=1)
    seed: Seed


class Compare(Stage):
    """Which held-out score ranks the models."""

    rank_by: Literal["r2", "r2_solar", "r2_wind"]


class Promote(Stage):
    """The gate: what a candidate has to show."""

    least_gain: float = Field(ge=0, le=1, description="in R2 over the model in production")
    near_tie: float = Field(ge=0, le=1, description="with R2 this close to the champion's, weekly errors decide")
    alpha: float = Field(gt=0, lt=0.5, description="most probable by chance, for weekly errors that are smaller")
    least_r2_solar: float = Field(ge=-1, le=1, description="held out")
    least_r2_wind: float = Field(ge=-1, le=1, description="held out")
    most_night_solar_GW: float = Field(gt=0, le=100, description="mean predicted solar power while the sun is down")
    most_latency_ms: float = Field(gt=0, le=60_000, description="for the prediction of one hour")
    most_size_MB: float = Field(gt=0, le=10_000, description="of the model's files")


class Report(Stage):
    """Which week the report is on."""

    week: str = Field(pattern=r"^(latest|\d{4}-W\d{2})$", description="`latest`, or one like 2016-W40")


STAGES: dict[str, type[Stage]] = {
    "fetch": Fetch,
    "prepare": Prepare,
    "split": Split,
    "train_linreg": TrainLinreg,
    "train_rf": TrainRf,
    "train_keras": TrainKeras,
    "train_gradient_boosting": TrainGradientBoosting,
    "compare": Compare,
    "promote": Promote,
    "report": Report,
}


def read(file: Path) -> dict[str, Stage]:
    """Return the checked parameters of every stage; raise ParameterError naming key, value and what is allowed."""
    content = _load(file)
    for stage in content:
        if stage not in STAGES:
            raise _unknown(file, stage, content[stage], list(STAGES))
    return {stage: _check(file, content, stage) for stage in STAGES}


def read_stage(file: Path, stage: str) -> Stage:
    """Return the checked parameters of one stage, whatever the rest of the file says."""
    if stage not in STAGES:
        raise ParameterError(f"There is no stage `{stage}`.", expected=", ".join(STAGES))
    return _check(file, _load(file), stage)


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader; a key that is there twice is an error, and a date is text."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        """Return a mapping's content; raise ConstructorError naming the first key that is there already."""
        keys = [key.value for key, _ in node.value]
        for place, (key, _) in enumerate(node.value):
            if key.value in keys[:place]:
                problem = f"the key `{key.value}` is there more than once"
                raise yaml.constructor.ConstructorError(problem=problem, problem_mark=key.start_mark)
        return super().construct_mapping(node, deep)


_Loader.add_constructor("tag:yaml.org,2002:timestamp", yaml.SafeLoader.construct_yaml_str)


def _load(file: Path) -> dict[str, Any]:
    try:
        with file.open(encoding="utf-8-sig") as text:
            content = yaml.load(text, _Loader)  # noqa: S506 - a SafeLoader
    except OSError as error:
        raise ParameterError(f"{file} cannot be read.", value=error.strerror) from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        value = "nested too deeply" if isinstance(error, RecursionError) else " ".join(str(error).split())
        raise ParameterError(f"{file} is not YAML in UTF-8.", value=value, next_step="correct that place") from None
    if not isinstance(content, dict):
        raise ParameterError(f"{file} holds no stages.", value=repr(content), expected="keys: " + ", ".join(STAGES))
    return content


def _check(file: Path, content: dict[str, Any], stage: str) -> Stage:
    section = content.get(stage)
    model = STAGES[stage]
    if not isinstance(section, dict):
        raise ParameterError(
            f"{file.name}: `{stage}` holds no parameters.",
            value=repr(section),
            expected=", ".join(model.model_fields),
            next_step=f"edit {file}",
        )
    try:
        return model.model_validate(section)
    except ValidationError as error:
        first = error.errors()[0]
    place = first["loc"] or (stage,)
    *way, key = place[:-2] if place[-1] == "[key]" else place  # a table's key, such as a year, is a matter of the table
    inner = _model_at(model, way)
    name = ".".join(str(word) for word in (stage, *way, key))
    if first["type"] == "extra_forbidden":
        raise _unknown(file, name, first["input"], list(inner.model_fields))
    raise ParameterError(
        f"{file.name}: {name} " + ("is missing." if first["type"] == "missing" else "is not allowed."),
        value=None if first["type"] == "missing" else repr(first["input"]),
        expected=allowed(inner, key) if key in inner.model_fields else first["msg"],
        next_step=f"edit {file}",
    )


def _model_at(model: type[Stage], way: list[str | int]) -> type[Stage]:
    """Return the model that the keys and places of ``way`` lead to, from ``model`` on."""
    for key in way:
        if isinstance(key, str):
            model = next(kind for kind in _kinds(model.model_fields[key].annotation) if issubclass(kind, Stage))
    return model


def _kinds(annotation: Any) -> list[type]:
    """Return the classes that an annotation such as ``list[Address] | None`` is made of."""
    inner = get_args(annotation)
    return [kind for part in inner for kind in _kinds(part)] if inner else [annotation] * isinstance(annotation, type)


def _unknown(file: Path, key: str, value: object, known: list[str]) -> ParameterError:
    near = difflib.get_close_matches(key.rsplit(".", 1)[-1], known, n=1)
    return ParameterError(
        f"{file.name}: {key} is unknown." + (f" Did you mean `{near[0]}`?" if near else ""),
        value=repr(value),
        expected=", ".join(known),
        next_step=f"edit {file}",
    )


def allowed(model: type[Stage], key: str) -> str:
    """Say in words what a parameter may be: type, range, choices, meaning."""
    document = model.model_json_schema()
    schema = document["properties"][key]
    description = f" ({schema['description']})" if "description" in schema else ""
    optional = "default" in schema and schema["default"] is None
    schema = next((kind for kind in schema.get("anyOf", ()) if kind.get("type") != "null"), schema)
    if "items" in schema:
        return "a list of: " + _keys(document, schema["items"]) + description
    if "$ref" in schema:
        return _keys(document, schema) + description
    if choices := schema.get("enum") or ([schema["const"]] if "const" in schema else None):
        words = " or ".join(f"`{choice}`" for choice in choices)
    else:
        kinds = {"integer": "a whole number", "number": "a number", "boolean": "true or false", "string": "text"}
        kinds |= {"object": "a table"}
        words = kinds[schema["type"]]
        bounds = {
            "minimum": "from {}",
            "exclusiveMinimum": "above {}",
            "maximum": "to {}",
            "exclusiveMaximum": "below {}",
            "pattern": "like {}",
        }
        words = " ".join([words, *(text.format(schema[name]) for name, text in bounds.items() if name in schema)])
    return words + (" or nothing" if optional else "") + description


def _keys(document: dict[str, Any], schema: dict[str, Any]) -> str:
    model = document["$defs"][schema["$ref"].rsplit("/", 1)[-1]]
    return "keys: " + ", ".join(model["properties"])
