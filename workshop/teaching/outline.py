"""The chapters: their folders, and their notebooks in the order in which they are worked through."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Chapter:
    """One chapter: its number, folder, title, what it takes in minutes, and its notebooks in order."""

    number: int
    folder: str
    title: str
    minutes: int
    notebooks: tuple[str, ...] = ()

    @property
    def readme(self) -> str:
        """The path of its first page, from the repository's top."""
        return f"{self.folder}/README.md"

    @property
    def exercises(self) -> str:
        """The path of its exercises, from the repository's top."""
        return f"{self.folder}/exercises.ipynb"


MODELS = ("model_linreg", "model_rf", "model_keras")  # the same names in chapters 1 and 2, so that a diff is the lesson
CHAPTERS = (
    Chapter(1, "1_starting_point", "The starting point", 15, ("make_processed_data", *MODELS)),
    Chapter(2, "2_tracking", "Tracking", 35, (*MODELS, "capacity_factor", "compare_runs", "get_prod_model")),
    Chapter(3, "3_projects", "Projects", 30, ("reproduce",)),
    Chapter(4, "4_pipeline", "The pipeline", 40),
)


def chapter(number: int) -> Chapter:
    """Return the chapter of a number from 1 to 4."""
    return CHAPTERS[number - 1]
