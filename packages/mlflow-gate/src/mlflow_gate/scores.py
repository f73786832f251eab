"""What a model scores on held-out data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Scores:
    """How a model does on held-out data: what a function ``evaluate(model, held_out)`` returns.

    ``metrics`` are its figures by name. ``blocks`` is the model's error in each block (a week, a customer, a fold) by
    the block's name, smaller is better: a mapping or a pandas Series. Rows of one block may depend on one another;
    blocks should not. ``facts`` is what rules of one's own need besides.

    ``part`` says in words which of the rows between two ends were held out, if not all, such as `test weeks`.

    The gate adds ``held_out``, the hash that names the data, ``period``, its first and last key, and ``rows``.

    >>> scores = Scores({"accuracy": 0.9}, blocks={"fold 1": 0.08, "fold 2": 0.12})
    >>> scores.as_dict()["metrics"]
    {'accuracy': 0.9}
    """

    metrics: Mapping[str, float]
    blocks: Mapping[Any, float] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    held_out: str = ""
    period: tuple[str, str] | None = None
    rows: int = 0
    part: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "metrics", {str(name): float(value) for name, value in dict(self.metrics).items()})
        object.__setattr__(self, "blocks", {str(name): float(value) for name, value in dict(self.blocks).items()})

    def as_dict(self) -> dict[str, Any]:
        """Return the scores as JSON-able values; NaN and infinity are left out."""
        kept = {name: value for name, value in self.metrics.items() if math.isfinite(value)}
        blocks = {name: value for name, value in self.blocks.items() if math.isfinite(value)}
        period = list(self.period) if self.period else None
        names = {name: getattr(self, name) for name in ("held_out", "rows", "part")}
        return {"metrics": kept, "blocks": blocks, "period": period} | names
