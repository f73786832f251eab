"""Rules: limits of a metric, as YAML holds them, and functions of one's own."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from mlflow_gate.errors import ConfigError
from mlflow_gate.scores import Scores

# A function of one's own returns the value, the limit in words, and whether the candidate passes.
Check = Callable[[Scores], tuple[Any, str, bool]]


@dataclass(frozen=True)
class Rule:
    """The finding on one rule: its name for a person, the candidate's value, the limit, and whether it passed.

    ``next_step`` says what to do about a candidate that fails.

    >>> print(Rule("R2", 0.42, ">= 0.5", passed=False))
    R2: 0.42 (allowed: >= 0.5)
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


class Limits(BaseModel):
    """The limits of one metric: ``min``, ``max`` or both, and what people call it."""

    model_config = ConfigDict(extra="forbid")

    min: float | None = Field(default=None, allow_inf_nan=False)
    max: float | None = Field(default=None, allow_inf_nan=False)
    name: str | None = None
    unit: str = ""
    low: str = "too low"  # what a value below `min` means
    high: str = "too high"
    next_step: str = ""

    @model_validator(mode="after")
    def _has_a_limit(self) -> Limits:
        if self.min is None and self.max is None:
            raise ValueError("give min, max or both")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min {self.min:g} is above max {self.max:g}")
        return self

    def judge(self, metric: str, value: float) -> Rule:
        """Return the finding on a value; NaN never passes."""
        low = self.min is not None and not value >= self.min
        high = self.max is not None and not value <= self.max
        if self.min is not None and self.max is not None:
            limit = f"{self.min:g} to {self.max:g}"
        else:
            limit = f">= {self.min:g}" if self.min is not None else f"<= {self.max:g}"
        direction = "" if math.isnan(value) else self.low if low else self.high
        step = ": ".join(filter(None, [direction, self.next_step])) if low or high else ""
        return Rule(self.name or metric, float(value), limit, not (low or high), self.unit, step)


def read_rules(rules: Mapping[str, Any]) -> dict[str, Limits | Check]:
    """Return rules as they are applied; raise ConfigError for one that is no limit and no function.

    >>> read_rules({"r2": {"min": 0.5}})["r2"].judge("r2", 0.42).limit
    '>= 0.5'
    """
    if not isinstance(rules, Mapping):
        expected = "a mapping such as {r2: {min: 0.5}}"
        raise ConfigError("The rules cannot be read.", value=repr(rules)[:200], expected=expected)
    return {str(name): _read(str(name), rule) for name, rule in rules.items()}


def _read(name: str, rule: Any) -> Limits | Check:
    if callable(rule):
        return rule
    try:
        return rule if isinstance(rule, Limits) else Limits.model_validate(rule)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, (name, *first["loc"])))
        expected = "min, max or both, each a number; also name, unit, low, high, next_step; or a function"
        raise ConfigError(f"The rule {where} cannot be read: {first['msg']}.", value=rule, expected=expected) from None


def judge(rules: Mapping[str, Limits | Check], scores: Scores) -> Iterator[Rule]:
    """Yield the finding on each rule; raise ConfigError for one whose metric was not scored."""
    for name, rule in rules.items():
        if isinstance(rule, Limits):
            if name not in scores.metrics:
                expected = f"one of {', '.join(scores.metrics) or 'none'}"
                raise ConfigError("A rule names a metric that was not scored.", value=name, expected=expected)
            yield rule.judge(name, scores.metrics[name])
        else:
            value, limit, passed = rule(scores)
            yield Rule(name, value, limit, bool(passed), next_step="" if passed else (rule.__doc__ or "").strip())
