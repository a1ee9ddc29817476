"""Deprecated: the name under which `grimmgen.training.distributed` was documented in version 0.1."""

from __future__ import annotations

import warnings

from grimmgen.training.distributed import process_group as joined

__all__ = ["joined"]

warnings.warn(
    "grimmgen.ranks is deprecated: use process_group() of grimmgen.training.distributed",
    DeprecationWarning,
    stacklevel=2,
)
