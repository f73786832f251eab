"""The pages by their paths; each module is one page.

A page module has `PATH`, `TITLE` and `page(snapshot, query)`, which returns its sections. If the reader can set
something on the page, `register(app, follower)` connects its parts; any other page is made again for each revision.
"""

from __future__ import annotations

from types import ModuleType

from . import comparison, hours, in_production, over_time, what_if, your_weather

PAGES: tuple[ModuleType, ...] = (comparison, over_time, what_if, your_weather, in_production, hours)
PATHS = ("/", *(page.PATH for page in PAGES))
