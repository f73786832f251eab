"""What the doctor says of one thing: well, worth a look, or wrong."""

from __future__ import annotations

from dataclasses import asdict, dataclass

OK, LOOK, WRONG = "ok", "look", "wrong"


@dataclass(frozen=True)
class Finding:
    """One thing looked at: what was found, how that is, and what to type when it is not well.

    ``verdict`` is `ok`, `look` (it works, yet may surprise) or `wrong` (something will fail).
    """

    check: str
    verdict: str
    found: str
    next_step: str = ""

    @property
    def ok(self) -> bool:
        """Whether nothing will fail because of this."""
        return self.verdict != WRONG

    def as_dict(self) -> dict:
        """Return the fields as JSON-able values."""
        return asdict(self) | {"ok": self.ok}


def well(check: str, found: str) -> Finding:
    """Return that something is as it should be."""
    return Finding(check, OK, found)


def look(check: str, found: str, next_step: str) -> Finding:
    """Return that something works, yet may surprise."""
    return Finding(check, LOOK, found, next_step)


def wrong(check: str, found: str, next_step: str) -> Finding:
    """Return that something will fail."""
    return Finding(check, WRONG, found, next_step)
