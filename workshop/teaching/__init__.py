"""What attendees and instructors use: the steps of the chapters, exercises, a doctor, a head start, a reset."""

__all__ = ["chapters", "checkpoints", "doctor", "exercises"]
