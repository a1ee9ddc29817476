"""What all tests share: no test touches the user's home, the quick ones come first."""

from __future__ import annotations

from pathlib import Path

import pytest


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
