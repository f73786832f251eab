"""The pages of the dashboard, one module each.

A page module has `PATH`, `TITLE` and `page(snapshot, query)`, which returns its sections. An interactive page registers
its callbacks in `register(app, follower)`; any other page is rendered again for each revision.
"""

from __future__ import annotations

from types import ModuleType

from . import comparison, hours, in_production, over_time, what_if, your_weather

PAGES: tuple[ModuleType, ...] = (comparison, over_time, what_if, your_weather, in_production, hours)
PATHS = ("/", *(page.PATH for page in PAGES))
