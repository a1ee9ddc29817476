"""The exceptions that grimmgen raises, and their exit codes.

    GrimmgenError        1  an operation failed; the message names the remedy
    ├── UsageError       2  an option, a name or a setting is invalid
    └── IntegrityError   3  a file is damaged or not the expected one

Any other exception that reaches the command line is a bug in grimmgen (exit code 70).
"""

from __future__ import annotations

from collections.abc import Iterable


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


def did_you_mean(unknown: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: the known one that it resembles; empty if there is none.

    >>> did_you_mean("slyfox", ["old-owl", "sly-fox"]), did_you_mean("x", ["sly-fox"])
    (', did you mean sly-fox', '')
    """
    import difflib

    near = difflib.get_close_matches(unknown[:80], known, 1, cutoff=0.75)
    return f", did you mean {near[0]}" if near else ""
