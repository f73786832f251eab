"""What of the workshop is done, by what is really there, and what is next."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from workshop.settings import Settings
from workshop.teaching import brought, exercises
from workshop.teaching.checkpoints import pipeline, projects, starting_point, tracking
from workshop.teaching.checkpoints.evidence import Evidence, gather
from workshop.teaching.checkpoints.step import DONE, Checkpoint, Step, Verdict, missing
from workshop.teaching.outline import CHAPTERS, Chapter

STEPS = {1: starting_point.STEPS, 2: tracking.STEPS, 3: projects.STEPS, 4: pipeline.STEPS}


@dataclass(frozen=True)
class Progress:
    """All steps as they were found; ``begun_at`` is the chapter that `workshop up --chapter` went on to, if any."""

    checkpoints: tuple[Checkpoint, ...]
    begun_at: int = 1

    def of(self, chapter: int) -> list[Checkpoint]:
        """Return the steps of a chapter in order."""
        return [checkpoint for checkpoint in self.checkpoints if checkpoint.chapter == chapter]

    def is_complete(self, chapter: int) -> bool:
        """Tell whether all that a chapter makes is there."""
        return all(checkpoint.there for checkpoint in self.of(chapter))

    @property
    def next(self) -> Checkpoint | None:
        """The first step that is not there; chapters that somebody skipped come after the others."""
        open_ones = [checkpoint for checkpoint in self.checkpoints if not checkpoint.there]
        return min(open_ones, key=lambda checkpoint: checkpoint.chapter < self.begun_at, default=None)

    def next_of(self, chapters: list[int]) -> Checkpoint | None:
        """The next step of some chapters, whatever lies open in the others; of all when these are complete."""
        within = [checkpoint for checkpoint in self.checkpoints if checkpoint.chapter in chapters]
        return Progress(tuple(within), self.begun_at).next or self.next


def examine(settings: Settings) -> Progress:
    """Look at everything, once; takes a second, and some seconds when the tracking server does not answer."""
    return Progress(tuple(verdicts(gather(settings))), max(1, brought.read(settings).chapter))


def verdicts(evidence: Evidence) -> list[Checkpoint]:
    """Return each step with what the evidence says of it."""
    checkpoints = []
    for chapter in CHAPTERS:
        for step in (*STEPS[chapter.number], *exercise_steps(chapter)):
            verdict = step.look(evidence)
            found = (verdict.state, verdict.reason, step.heading)
            checkpoints.append(Checkpoint(chapter.number, step.title, step.where, *found))
    return checkpoints


def exercise_steps(chapter: Chapter) -> list[Step]:
    """Return a chapter's exercises as steps."""
    return [
        Step(f"Exercise {each.number}: {each.title}", chapter.exercises, partial(is_solved, each.number))
        for each in exercises.of_chapter(chapter.number)
    ]


def is_solved(number: str, evidence: Evidence) -> Verdict:
    """Look whether an exercise was solved here."""
    if number in evidence.solved:
        return DONE
    return missing(f'Run its cells in exercises.ipynb; `check("{number}", answer)` has to say "solved".')
