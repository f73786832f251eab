"""What hostile models are made of, and the proof that one of them ran nothing."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from forecast.errors import ModelError
from forecast.learn.storage import load_folder

NAME = "models:/wind_solar/7"


class Trap:
    """Makes a folder when it is unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


def check_refusal(good: Path, build: Callable, place: Path) -> None:
    """Make a hostile model of a good one in a folder; it is refused, and nothing has run, been read or been written."""
    (place / "secret.txt").write_text("a line of another file")
    folder, mark = place / "model", place / "sprung"
    shutil.copytree(good, folder)
    build(folder, mark)
    before = sorted(place.rglob("*"))
    with pytest.raises(ModelError) as refused:
        load_folder(folder, NAME)
    assert sorted(place.rglob("*")) == before
    assert NAME in str(refused.value)
    assert "a line of another file" not in str(refused.value)
