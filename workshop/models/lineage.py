"""Where a model comes from and how it got into production: from the data to the alias, link by link."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Link:
    """One link of the chain; ``kind`` is one of `KINDS`.

    ``name`` is what people call it, ``facts`` what is known of it, in words, ``url`` a page that shows it.
    ``trouble`` says what is broken, after `verify`; a link that was never recorded is ``known`` not.
    """

    kind: str
    name: str
    facts: dict[str, str] = field(default_factory=dict)
    url: str | None = None
    known: bool = True
    trouble: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-able values."""
        return asdict(self)


KINDS = ("data", "commit", "stage", "notebook", "run", "model", "decision", "production")


def of_version(version: str) -> list[Link]:
    """Return the chain of a registered version, the data first; every kind stands in it once, known or not."""
    raise NotImplementedError
