"""The pages by their paths; each module holds one, with what it shows and its callbacks.

A page module has `PATH`, `TITLE`, `page(served, query)`, which returns its sections filled, and
`register(app, serving)`, which connects its parts.
"""

from __future__ import annotations

from types import ModuleType

from pages import comparison, hours, in_production, what_if, your_weather

PAGES: tuple[ModuleType, ...] = (comparison, what_if, your_weather, in_production, hours)
PATHS = ("/", *(page.PATH for page in PAGES))


def at(path: str) -> ModuleType | None:
    """Return the page of a path, the comparison for the front page; None where there is no page."""
    return next((page for page in PAGES if path in (page.PATH, "/")), None)
