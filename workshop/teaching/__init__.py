"""Help for attendees and instructors.

- `checkpoints` defines the steps of the chapters, `start_page` shows them; `exercises` checks answers.
- `chapter_files` restores the files of a chapter, or creates the missing results of earlier chapters.
- `doctor` checks a machine after the installation, `prerequisites` before it; `pyenv` is a shim for pyenv.
"""

__all__ = ["chapter_files", "checkpoints", "doctor", "exercises", "prerequisites", "pyenv", "start_page"]
