"""Scores of a model, rules for its metrics, and the findings of the rules."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from mlflow_gate.errors import ConfigError, GateError


@dataclass(frozen=True)
class Scores:
    """The scores of a model on held-out rows, as your ``evaluate(model, held_out)`` returns them.

    Parameters
    ----------
    metrics : mapping of str to float
        Metrics by name.
    blocks : mapping or pandas.Series
        The model's error (lower is better) in each block: a week, a customer, a fold. Rows of the same block may
        depend on each other; blocks should be independent.
    facts : mapping
        Additional values for your own rules.
    held_out, period, rows
        Hash, first and last key, and number of the held-out rows; the gate sets them.
    part : str
        A description of the held-out rows if they are only a part of the period, such as `test weeks`.

    Raises
    ------
    ConfigError
        If a metric or a block's error is not a number, two have one name, or ``period`` is not a (start, end) pair.
    """

    metrics: Mapping[str, float]
    blocks: Mapping[Any, float] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    held_out: str = ""
    period: tuple[str, str] | None = None
    rows: int = 0
    part: str = ""

    def __post_init__(self) -> None:
        for name in ("metrics", "blocks"):
            mapping, what = getattr(self, name), f"Invalid `Scores.{name}`"
            try:
                values = {str(key): _number(value) for key, value in mapping.items()}
                if len(values) < len(mapping):
                    raise ValueError("two values have the same name")
            except (AttributeError, TypeError, ValueError) as error:
                expected = "a mapping or a Series of single numbers with unique names"
                raise ConfigError(f"{what}: {error}.", value=repr(mapping)[:200], expected=expected) from None
            object.__setattr__(self, name, values)
        if self.period is not None and (isinstance(self.period, str) or len(self.period) != 2):
            raise ConfigError("Invalid `Scores.period`.", value=self.period, expected="a pair: start and end")
        object.__setattr__(self, "period", self.period and tuple(map(str, self.period)))
        object.__setattr__(self, "part", str(self.part))

    def as_dict(self) -> dict[str, Any]:
        """Return the scores as JSON-serializable values, without NaN and infinity."""
        metrics, blocks = (
            {name: value for name, value in values.items() if math.isfinite(value)}
            for values in (self.metrics, self.blocks)
        )
        rows = {"period": self.period, "held_out": self.held_out, "rows": self.rows, "part": self.part}
        return {"metrics": metrics, "blocks": blocks} | rows


def _number(value: Any) -> float:
    """Return a value as a float; raise TypeError for a string, an array or a Series, even of length 1."""
    if isinstance(value, str | bytes) or getattr(value, "ndim", None):
        raise TypeError(f"{value!r:.60} is not a single number")
    return float(value)


@dataclass(frozen=True)
class Finding:
    """The result of a rule.

    Parameters
    ----------
    name : str
        The rule's display name.
    value : float or str, optional
        The candidate's value.
    limit : str
        The allowed values.
    passed : bool
        Whether the candidate passed.
    unit : str
        The value's unit.
    next_step : str
        What to do about a failure.
    """

    name: str
    value: float | str | None
    limit: str
    passed: bool
    unit: str = ""
    next_step: str = ""

    def __str__(self) -> str:
        unit = f" {self.unit}" if self.unit and self.value is not None else ""
        return f"{self.name}: {self.text}{unit} (allowed: {self.limit}{unit})"

    @property
    def label(self) -> str:
        """The name, with the unit in parentheses."""
        return f"{self.name} ({self.unit})" if self.unit else self.name

    @property
    def text(self) -> str:
        """The value as text."""
        return f"{self.value:.4g}" if isinstance(self.value, float) else str(self.value)


class Rule(BaseModel):
    """The limits of one metric.

    Parameters
    ----------
    min, max : float, optional
        The limits, inclusive; at least one is required.
    name, unit : str
        How findings display the metric.
    low, high : str
        Description of a value below ``min`` or above ``max``, such as `too low`.
    next_step : str
        What to do about such a value.
    """

    model_config = ConfigDict(extra="forbid")

    min: float | None = Field(default=None, allow_inf_nan=False)
    max: float | None = Field(default=None, allow_inf_nan=False)
    name: str | None = None
    unit: str = ""
    low: str = "too low"
    high: str = "too high"
    next_step: str = ""

    @model_validator(mode="after")
    def _has_a_limit(self) -> Rule:
        if self.min is None and self.max is None:
            raise ValueError("set min, max or both")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min {self.min:g} is above max {self.max:g}")
        return self

    def check(self, metric: str, value: float) -> Finding:
        """Return the finding for a value; NaN never passes."""
        low = self.min is not None and not value >= self.min
        high = self.max is not None and not value <= self.max
        limit = f"<= {self.max:g}" if self.min is None else f">= {self.min:g}"
        limit = f"{self.min:g} to {self.max:g}" if None not in (self.min, self.max) else limit
        direction = "not a number" if math.isnan(value) else self.low if low else self.high
        step = ": ".join(filter(None, [direction, self.next_step])) if low or high else ""
        return Finding(self.name or metric, float(value), limit, not (low or high), self.unit, step)


# A rule that is a function returns the value, the limit as text, and whether the candidate passes.
Rules = Mapping[str, Rule | Callable[[Scores], tuple[Any, str, bool]]]


def read_rules(rules: Mapping[str, Any] | None) -> Rules:
    """Return validated rules; raise ConfigError for a rule that is neither valid limits nor a function."""
    rules = {} if rules is None else rules  # an empty YAML file is loaded as None
    if not isinstance(rules, Mapping):
        expected = "a mapping such as {r2: {min: 0.5}}, or a function that returns one"
        raise ConfigError("Invalid rules.", value=repr(rules)[:200], expected=expected)
    validated = {}
    for name, rule in rules.items():
        try:
            validated[str(name)] = rule if callable(rule) or isinstance(rule, Rule) else Rule.model_validate(rule)
        except ValidationError as error:
            first = error.errors()[0]
            what = f"Invalid rule {'.'.join(map(str, (name, *first['loc'])))}: {first['msg']}."
            expected = "min, max or both, each a number; also name, unit, low, high, next_step; or a function"
            raise ConfigError(what, value=rule, expected=expected) from None
    return validated


def check(rules: Rules, scores: Scores) -> Iterator[Finding]:
    """Yield the finding of each rule; raise ConfigError if its metric is missing or its function fails."""
    for name, rule in rules.items():
        if isinstance(rule, Rule):
            if name not in scores.metrics:
                expected = f"one of {', '.join(scores.metrics) or 'the metrics, but there are none'}"
                raise ConfigError(
                    "A rule refers to a metric that is missing from the scores.", value=name, expected=expected
                )
            yield rule.check(name, scores.metrics[name])
        else:
            try:
                value, limit, passed = rule(scores)
                if passed not in (True, False):
                    raise TypeError("the third return value is neither True nor False")
            except GateError:
                raise
            except Exception as error:
                expected = "a function of Scores that returns the value, the limit as text, and whether the rule is met"
                raise ConfigError(f"The rule {name} is invalid.", value=repr(error)[:300], expected=expected) from error
            step = "" if passed else (rule.__doc__ or f"look at the rule {name}").strip()
            value = value if isinstance(value, float) else str(value)
            yield Finding(name, value, str(limit), bool(passed), next_step=step)
