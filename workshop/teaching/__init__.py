"""Help for attendees and instructors.

- `checkpoints` has the steps of the chapters, `start_page` shows them; `exercises` checks answers.
- `chapter_files` puts the files of a chapter back, or prepares the state that the earlier chapters would have left.
- `doctor` examines a machine, `prerequisites` a new one; `pyenv` stands in for the program of this name.
"""

__all__ = ["chapter_files", "checkpoints", "doctor", "exercises", "prerequisites", "pyenv", "start_page"]
