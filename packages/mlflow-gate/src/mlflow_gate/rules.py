"""Scores of a model, rules for them, and what each rule finds."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from mlflow_gate.errors import ConfigError, GateError


@dataclass(frozen=True)
class Scores:
    """How a model does on held-out data: what a function ``evaluate(model, held_out)`` returns.

    ``metrics`` are its figures by name. ``blocks`` is the model's error in each block (a week, a customer, a fold) by
    the block's name, smaller is better: a mapping or a pandas Series. Rows of one block may depend on one another;
    blocks should not. ``facts`` is what rules of one's own need besides. ``part`` says in words which of the rows
    between two ends were held out, if not all, such as `test weeks`.

    The gate adds ``held_out``, the hash that names the data, ``period``, its first and last key, and ``rows``.
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
            given, what = getattr(self, name), f"The {name} of Scores cannot be read"
            try:
                values = {str(key): _number(value) for key, value in given.items()}
                if len(values) < len(given):
                    raise ValueError("two have the same name")
            except (AttributeError, TypeError, ValueError) as error:
                expected = "single numbers by their names, which differ: a mapping, or a Series"
                raise ConfigError(f"{what}: {error}.", value=repr(given)[:200], expected=expected) from None
            object.__setattr__(self, name, values)
        if self.period is not None and (isinstance(self.period, str) or len(self.period) != 2):
            raise ConfigError("The period of Scores cannot be read.", value=self.period, expected="its two ends")
        object.__setattr__(self, "period", self.period and tuple(map(str, self.period)))
        object.__setattr__(self, "part", str(self.part))

    def as_dict(self) -> dict[str, Any]:
        """Return the scores as JSON-able values; NaN and infinity are left out."""
        metrics, blocks = (
            {name: value for name, value in values.items() if math.isfinite(value)}
            for values in (self.metrics, self.blocks)
        )
        judged = {"period": self.period, "held_out": self.held_out, "rows": self.rows, "part": self.part}
        return {"metrics": metrics, "blocks": blocks} | judged


def _number(value: Any) -> float:
    """Return a number; raise TypeError for a text, and for an array or a Series, of one number too."""
    if isinstance(value, str | bytes) or getattr(value, "ndim", None):
        raise TypeError(f"{value!r:.60} is no single number")
    return float(value)


@dataclass(frozen=True)
class Finding:
    """What a rule found: its name for a person, the candidate's value, the limit, and whether the candidate passed.

    ``next_step`` says what to do about a candidate that fails.
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
        """The name, with the unit in brackets."""
        return f"{self.name} ({self.unit})" if self.unit else self.name

    @property
    def text(self) -> str:
        """The value as text."""
        return f"{self.value:.4g}" if isinstance(self.value, float) else str(self.value)


class Rule(BaseModel):
    """The limits of one metric: ``min``, ``max`` or both, what people call it, and what a value beyond them means."""

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
            raise ValueError("give min, max or both")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min {self.min:g} is above max {self.max:g}")
        return self

    def judge(self, metric: str, value: float) -> Finding:
        """Return the finding on a value; NaN never passes."""
        low = self.min is not None and not value >= self.min
        high = self.max is not None and not value <= self.max
        limit = f"<= {self.max:g}" if self.min is None else f">= {self.min:g}"
        limit = f"{self.min:g} to {self.max:g}" if None not in (self.min, self.max) else limit
        direction = "not a number" if math.isnan(value) else self.low if low else self.high
        step = ": ".join(filter(None, [direction, self.next_step])) if low or high else ""
        return Finding(self.name or metric, float(value), limit, not (low or high), self.unit, step)


# A function of one's own returns the value, the limit in words, and whether the candidate passes.
Rules = Mapping[str, Rule | Callable[[Scores], tuple[Any, str, bool]]]


def read_rules(rules: Mapping[str, Any] | None) -> Rules:
    """Return rules as they are applied; raise ConfigError for one that is neither limits nor a function."""
    rules = {} if rules is None else rules  # as of an empty file of YAML
    if not isinstance(rules, Mapping):
        expected = "a mapping such as {r2: {min: 0.5}}, or a function that returns one"
        raise ConfigError("The rules cannot be read.", value=repr(rules)[:200], expected=expected)
    read = {}
    for name, rule in rules.items():
        try:
            read[str(name)] = rule if callable(rule) or isinstance(rule, Rule) else Rule.model_validate(rule)
        except ValidationError as error:
            first = error.errors()[0]
            what = f"The rule {'.'.join(map(str, (name, *first['loc'])))} cannot be read: {first['msg']}."
            expected = "min, max or both, each a number; also name, unit, low, high, next_step; or a function"
            raise ConfigError(what, value=rule, expected=expected) from None
    return read


def judge(rules: Rules, scores: Scores) -> Iterator[Finding]:
    """Yield what each rule finds; raise ConfigError for one whose metric was not scored, or that does not work."""
    for name, rule in rules.items():
        if isinstance(rule, Rule):
            if name not in scores.metrics:
                expected = f"one of {', '.join(scores.metrics) or 'none'}"
                raise ConfigError("A rule names a metric that was not scored.", value=name, expected=expected)
            yield rule.judge(name, scores.metrics[name])
        else:
            try:
                value, limit, passed = rule(scores)
                if passed not in (True, False):
                    raise TypeError("whether it passed is neither True nor False")
            except GateError:
                raise
            except Exception as error:
                expected = "a function of Scores that returns the value, the limit in words, and whether it passed"
                raise ConfigError(
                    f"The rule {name} cannot be applied.", value=repr(error)[:300], expected=expected
                ) from error
            step = "" if passed else (rule.__doc__ or f"look at the rule {name}").strip()
            value = value if isinstance(value, float) else str(value)
            yield Finding(name, value, str(limit), bool(passed), next_step=step)
