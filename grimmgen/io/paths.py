"""Where grimmgen keeps its files: one directory for what can be fetched again, one for what cannot.

`GRIMMGEN_HOME` moves both (to `cache/` and `data/` below it); else the platform's own places are used.
Nothing is created here.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import platformdirs

from grimmgen.errors import UsageError


def cache_directory() -> Path:
    """The directory of what can be made again: fetched corpora, ids of large texts, indices for novelty."""
    return _directory("cache", platformdirs.user_cache_path)


def data_directory() -> Path:
    """The directory of what cannot be made again: the runs."""
    return _directory("data", platformdirs.user_data_path)


def corpus_directory(name: str) -> Path:
    """The cached corpus of that name."""
    return cache_directory() / "corpora" / name


def index_directory(digest: str) -> Path:
    """The index of the training stories with that digest."""
    return cache_directory() / "indices" / digest


def tokens_directory() -> Path:
    """The ids of large texts, a file a text and a way to encode it."""
    return cache_directory() / "tokens"


def runs_directory() -> Path:
    """The registry: one directory a run."""
    return data_directory() / "runs"


def _directory(part: str, default: Callable[..., Path]) -> Path:
    remedy = "set GRIMMGEN_HOME to an absolute directory"
    home, variable = os.environ.get("GRIMMGEN_HOME"), f"XDG_{part.upper()}_HOME"
    # Some versions of platformdirs take a relative directory, others pass over it in silence.
    if not home and (xdg := os.environ.get(variable)) and not Path(xdg).is_absolute():
        raise UsageError(f"{variable} is {xdg!r}, which is not an absolute path", remedy)
    try:
        path = Path(home).expanduser() / part if home else default("grimmgen", appauthor=False)
    except RuntimeError:
        # What pathlib and platformdirs raise where there is no home directory.
        path = Path("~", part)
    # A relative path would depend on where the command was typed, and `~` would become a directory's name.
    if not path.is_absolute() or "~" in path.parts:
        source = f"GRIMMGEN_HOME is {home!r}, which is not an absolute path"
        if not home:
            source = f"no home directory: the {part} directory would be {str(path)!r}"
        raise UsageError(source, remedy)
    return path
