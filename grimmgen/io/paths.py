"""Paths of grimmgen's files: a cache directory, which may be deleted at any time, and a data directory.

They are `cache/` and `data/` below `GRIMMGEN_HOME`, if it is set, else the platform's directories. Nothing is
created here.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import platformdirs

from grimmgen.errors import UsageError


def cache_directory() -> Path:
    """Fetched corpora, ids of large texts and indices for novelty: all of it can be made again."""
    return _directory("cache", platformdirs.user_cache_path)


def data_directory() -> Path:
    """The runs, which cannot be made again."""
    return _directory("data", platformdirs.user_data_path)


def corpus_directory(name: str) -> Path:
    """Documents and manifest of a fetched corpus."""
    return cache_directory() / "corpora" / name


def index_directory(digest: str) -> Path:
    """The index for novelty of the training documents with this digest."""
    return cache_directory() / "indices" / digest


def id_cache_directory() -> Path:
    """The ids of large texts, one file for each text and set of options."""
    return cache_directory() / "tokens"


def text_cache_directory() -> Path:
    """The text of large corpora that was extracted from their files."""
    return cache_directory() / "texts"


def standard_input_directory() -> Path:
    """Copies of the standard input that was read as a corpus, named by their hashes."""
    return cache_directory() / "standard-input"


def given_texts_directory() -> Path:
    """Copies of the texts that a Python program gave as a corpus, named by their hashes."""
    return cache_directory() / "given-texts"


def runs_directory() -> Path:
    """The registry: one directory for each run."""
    return data_directory() / "runs"


def _directory(part: str, default: Callable[..., Path]) -> Path:
    remedy = "set GRIMMGEN_HOME to an absolute directory"
    home, variable = os.environ.get("GRIMMGEN_HOME"), f"XDG_{part.upper()}_HOME"
    # Some versions of platformdirs accept a relative directory, others ignore it.
    if not home and (xdg := os.environ.get(variable)) and not Path(xdg).is_absolute():
        raise UsageError(f"{variable} is {xdg!r}, which is not an absolute path", remedy)
    try:
        path = Path(home).expanduser() / part if home else default("grimmgen", appauthor=False)
    except RuntimeError:
        # pathlib and platformdirs raise it if there is no home directory.
        path = Path("~", part)
    # A relative path would depend on the working directory, and `~` would become the name of a directory.
    if not path.is_absolute() or "~" in path.parts:
        source = f"GRIMMGEN_HOME is {home!r}, which is not an absolute path"
        if not home:
            source = f"no home directory: the {part} directory would be {str(path)!r}"
        raise UsageError(source, remedy)
    return path
