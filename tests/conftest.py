"""What all tests share: no test touches the user's home, the quick ones come first."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# The networks of the tests are tiny: threads would only wait for each other, the more so on a busy machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Move both directories of grimmgen below a temporary one."""
    directory = tmp_path / "home"
    for name in ("GRIMMGEN_DEBUG", "COLUMNS", "NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GRIMMGEN_HOME", str(directory))
    return directory


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the slow tests last."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is not None)
