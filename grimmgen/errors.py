"""The errors that grimmgen raises on purpose, and the exit code that each one means.

    GrimmgenError        1  something went wrong, and the message says what to do about it
    ├── UsageError       2  an option, a name or a setting cannot be used
    └── IntegrityError   3  a file is not what it should be

Whatever else reaches the command line is a bug of ours (exit code 70). This module knows no other.
"""

from __future__ import annotations


class GrimmgenError(Exception):
    """Something failed, told in one line that names the remedy.

    Args:
        what: what went wrong and where, in one line.
        remedy: what to do about it; shown after the first part.
    """

    exit_code = 1

    def __init__(self, what: str, remedy: str = "") -> None:
        super().__init__(what, remedy)
        self.what = what
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.what}: {self.remedy}" if self.remedy else self.what


class UsageError(GrimmgenError):
    """An option, a name or a setting that cannot be used; nothing was begun."""

    exit_code = 2


class IntegrityError(GrimmgenError):
    """A file is not what it should be: corrupt, truncated, of another corpus, of a future format."""

    exit_code = 3
