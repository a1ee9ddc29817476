"""Paths of the cache and of the data (fault 17)."""

from __future__ import annotations

import pwd
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from grimmgen.errors import UsageError
from grimmgen.io import paths
from tests.program import Ran

REMEDY = "set GRIMMGEN_HOME to an absolute directory"


def test_paths_are_below_home_and_nothing_is_created(home: Path) -> None:
    assert paths.cache_directory() == home / "cache"
    assert paths.corpus_directory("grimm") == home / "cache" / "corpora" / "grimm"
    assert paths.index_directory("0123") == home / "cache" / "indices" / "0123"
    assert paths.id_cache_directory() == home / "cache" / "tokens"
    assert paths.data_directory() == home / "data"
    assert paths.runs_directory() == home / "data" / "runs"
    assert not home.exists()


def test_tilde_is_expanded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("GRIMMGEN_HOME", "~/tales")
    assert paths.cache_directory() == tmp_path / "tales" / "cache"


@pytest.fixture
def platform(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Unset GRIMMGEN_HOME, so that the platform's directories are used, below a temporary home directory."""
    for name in ("GRIMMGEN_HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("empty", [False, True])
@pytest.mark.skipif(sys.platform != "linux", reason="other platforms have other directories")
def test_platform_directories_are_the_default(
    platform: Path, monkeypatch: pytest.MonkeyPatch, empty: bool
) -> None:
    for name in ("GRIMMGEN_HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME") if empty else ():
        monkeypatch.setenv(name, "")
    assert paths.cache_directory() == platform / ".cache" / "grimmgen"
    assert paths.data_directory() == platform / ".local" / "share" / "grimmgen"
    monkeypatch.setenv("XDG_CACHE_HOME", "/fast")
    monkeypatch.setenv("XDG_DATA_HOME", "/safe")
    assert (paths.cache_directory(), paths.data_directory()) == (Path("/fast/grimmgen"), Path("/safe/grimmgen"))


@pytest.mark.parametrize("value", ["tales", "./tales", "~no such user/tales", "/tales/~/x"])
def test_grimmgen_home_has_to_be_absolute(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("GRIMMGEN_HOME", value)
    for directory in paths.cache_directory, paths.runs_directory:
        with pytest.raises(UsageError) as caught:
            directory()
        assert str(caught.value) == f"GRIMMGEN_HOME is {value!r}, which is not an absolute path: {REMEDY}"
        assert caught.value.exit_code == 2


@pytest.mark.usefixtures("platform")
@pytest.mark.parametrize("value", ["cache", "./cache", "~/cache"])
def test_xdg_directory_has_to_be_absolute(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", value)
    with pytest.raises(UsageError) as caught:
        paths.cache_directory()
    assert str(caught.value) == f"XDG_CACHE_HOME is {value!r}, which is not an absolute path: {REMEDY}"
    assert paths.data_directory().is_absolute(), "the data directory is not affected"


@pytest.fixture
def nobody(platform: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: ARG001 - unsets variables
    """A user without HOME and without an entry in the passwd file."""

    def no_entry(who: object) -> None:
        raise KeyError(who)

    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", no_entry)


@pytest.mark.usefixtures("nobody")
def test_missing_home_directory_is_a_usage_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for part, directory in ("cache", paths.cache_directory), ("data", paths.data_directory):
        with pytest.raises(
            UsageError, match=f"^no home directory: the {part} directory would be '~/.*': {REMEDY}$"
        ):
            directory()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("nobody")
def test_training_without_a_home_directory_begins_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, run: Callable[..., Ran]
) -> None:
    monkeypatch.chdir(tmp_path)
    ran = run("train", "--corpus", "sampler")
    assert (ran.code, ran.out, ran.err.splitlines()[-1][:7]) == (2, "", "error: ")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("nobody")
def test_grimmgen_home_replaces_a_missing_home_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRIMMGEN_HOME", "/tales")
    assert paths.data_directory() == Path("/tales/data")
    monkeypatch.setenv("GRIMMGEN_HOME", "~/tales")
    with pytest.raises(UsageError, match="GRIMMGEN_HOME is '~/tales'"):
        paths.data_directory()
