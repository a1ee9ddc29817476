"""The exceptions that grimmgen raises, and their exit codes.

    GrimmgenError        1  an operation failed; the message names the remedy
    ├── UsageError       2  an option, a name or a setting is invalid
    └── IntegrityError   3  a file is damaged or not the expected one

Any other exception that reaches the command line is a bug in grimmgen (exit code 70).
"""

from __future__ import annotations


class GrimmgenError(Exception):
    """An operation failed.

    Args:
        what: what went wrong and where, in one line.
        remedy: what the user can do about it, in one line.
    """

    exit_code = 1

    def __init__(self, what: str, remedy: str = "") -> None:
        super().__init__(what, remedy)
        self.what = what
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.what}: {self.remedy}" if self.remedy else self.what


class UsageError(GrimmgenError):
    """An option, a name or a setting is invalid; nothing was started."""

    exit_code = 2


class IntegrityError(GrimmgenError):
    """A file is not the expected one: damaged, truncated, of another corpus or of a later format."""

    exit_code = 3
