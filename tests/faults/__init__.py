"""The faults of `tests/README.md`, each shown by a test that has its number."""

from __future__ import annotations

import os


def rounds(few: int, many: int) -> int:
    """How often a campaign goes round: `many` times where GRIMMGEN_FAULT_ROUNDS is `full`, else a `few`."""
    return many if os.environ.get("GRIMMGEN_FAULT_ROUNDS") == "full" else few
