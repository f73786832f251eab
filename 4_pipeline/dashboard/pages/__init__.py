"""The pages by their paths; each module holds one, with what it shows and what it answers to.

A page module has `PATH`, `TITLE`, `page(served, query)`, which returns its sections filled, and
`register(app, serving)`, which connects its parts.
"""

from __future__ import annotations

from types import ModuleType

from pages import data, model, outlook, what_if, your_weather

FRONT = "/"
PAGES: tuple[ModuleType, ...] = (outlook, what_if, your_weather, model, data)
PATHS = (FRONT, *(page.PATH for page in PAGES))


def at(path: str) -> ModuleType | None:
    """Return the page of a path; the outlook is the front page, too. None where there is no page."""
    return next((page for page in PAGES if path in (page.PATH, FRONT)), None)
