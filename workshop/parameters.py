"""What the experiment is: `params.yaml`, its keys, types and allowed values; one model a pipeline stage."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from workshop.errors import ParameterError


class Stage(BaseModel):
    """The parameters of one stage; an unknown key is an error, and text is no number."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


Seed = Annotated[int, Field(ge=0, lt=2**32, description="of the random numbers")]


class Fetch(Stage):
    """Where the raw files come from."""

    source: Literal["sample"] = Field(description="the embedded sample: real weather, modelled generation")


class Prepare(Stage):
    """Which years are kept, both ends included."""

    first_year: int = Field(ge=1980, le=2100)
    last_year: int = Field(ge=1980, le=2100)


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


class TrainKeras(Stage):
    """A small dense network."""

    epochs: int = Field(ge=1, le=1000)
    hidden_units: int = Field(ge=1, le=4096, description="in each of two layers")
    learning_rate: float = Field(gt=0, le=1)
    seed: Seed


class Compare(Stage):
    """Which held-out score ranks the models."""

    rank_by: Literal["r2", "r2_solar", "r2_wind"]


class Promote(Stage):
    """The gate: what a candidate has to show."""

    least_gain: float = Field(ge=0, le=1, description="in R2 over the model in production")
    least_r2: float = Field(ge=-1, le=1, description="mean of both targets, held out")
    most_night_solar_GW: float = Field(gt=0, le=100, description="mean predicted solar power while the sun is down")


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


def _load(file: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(file.read_text())
    except OSError as error:
        raise ParameterError(f"{file} cannot be read.", value=error.strerror) from None
    except yaml.YAMLError as error:
        raise ParameterError(f"{file} is not YAML.", value=" ".join(str(error).split())) from None
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
    key = str(first["loc"][0]) if first["loc"] else stage
    if first["type"] == "extra_forbidden":
        raise _unknown(file, f"{stage}.{key}", section[key], list(model.model_fields))
    raise ParameterError(
        f"{file.name}: {stage}.{key} " + ("is missing." if first["type"] == "missing" else "is not allowed."),
        value=None if first["type"] == "missing" else repr(first["input"]),
        expected=allowed(model, key),
        next_step=f"edit {file}",
    )


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
    schema = model.model_json_schema()["properties"][key]
    if choices := schema.get("enum") or ([schema["const"]] if "const" in schema else None):
        words = " or ".join(f"`{choice}`" for choice in choices)
    else:
        kinds = {"integer": "a whole number", "number": "a number", "boolean": "true or false", "string": "text"}
        words = kinds[schema["type"]]
        bounds = {
            "minimum": "from {}",
            "exclusiveMinimum": "above {}",
            "maximum": "to {}",
            "exclusiveMaximum": "below {}",
            "pattern": "like {}",
        }
        words = " ".join([words, *(text.format(schema[name]) for name, text in bounds.items() if name in schema)])
    return words + (f" ({schema['description']})" if "description" in schema else "")
