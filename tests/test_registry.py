"""The registry: runs are created, found and removed atomically, and no name is a path out of it."""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import errno
import json
import os
import re
import secrets
import threading
from pathlib import Path
from typing import Any

import pytest

from grimmgen.configuration import Configuration
from grimmgen.errors import GrimmgenError, IntegrityError, UsageError
from grimmgen.runs import registry
from grimmgen.runs.checkpoint import Checkpoint
from grimmgen.runs.registry import Run
from grimmgen.text.corpus import Corpus, Document, open_corpus
from grimmgen.text.split import Split
from tests.builders import tiny_checkpoint

STORIES = {part: Document(part, Path(f"{part}.txt"), sha256="0" * 64) for part in ("train", "valid", "test")}
CORPUS = Corpus("tales", "/tales", tuple(STORIES.values()))
SPLIT = Split({"train": (STORIES["train"],), "valid": (STORIES["valid"],), "test": (STORIES["test"],)})


def create(name: str | None = None, configuration: Configuration | None = None) -> Run:
    return registry.create(
        name, configuration or Configuration(), CORPUS, SPLIT, "grimmgen train", {"python": "3"}
    )


@pytest.fixture
def runs(home: Path) -> Path:
    return home / "data" / "runs"


def names() -> list[str]:
    return [run.name for run in registry.all_runs()]


def below(directory: Path) -> set[str]:
    """Return the paths of everything in a directory but its locks."""
    found = {path.relative_to(directory).as_posix() for path in directory.rglob("*")}
    return {name for name in found if not name.startswith(".lock")}


# --- creating runs ---------------------------------------------------------------------------------------


def test_a_new_run_has_its_description(runs: Path) -> None:
    run = create("first", Configuration(hidden=7))
    assert run.path == runs / "first"
    assert below(runs) == {"first", "first/run.json"}
    info = run.info()
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", info.pop("created"))
    assert info == {
        "format": 2,
        "name": "first",
        "order": 1,
        "command": "grimmgen train",
        "versions": {"python": "3"},
        "configuration": Configuration(hidden=7).to_json(),
        "precision": None,
        "corpus": {"name": "tales", "source": "/tales", "sha256": SPLIT.sha256, "split": SPLIT.to_json()},
    }
    assert run.configuration == Configuration(hidden=7)
    assert run.log() == []
    size = (run.path / "run.json").stat().st_size
    assert run.size() == size
    (run.path / "tensorboard").mkdir()
    (run.path / "tensorboard" / "events").write_bytes(b"12345")
    assert run.size() == size + 5


def test_generated_names_are_valid_and_unique() -> None:
    made = [create().name for _ in range(12)]
    assert len(set(made)) == 12
    assert all(re.fullmatch(r"[a-z]+-[a-z]+(-\d{1,3})?", name) for name in made)
    for name in made:
        registry.check_name(name)
    assert names() == made


def test_generated_names_get_a_number_when_all_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = iter([7, 7, 8])
    monkeypatch.setattr(registry, "_ADJECTIVES", ["sly"])
    monkeypatch.setattr(registry, "_NOUNS", ["fox"])
    monkeypatch.setattr(secrets, "randbelow", lambda _: next(drawn))
    assert [create().name for _ in range(3)] == ["sly-fox", "sly-fox-7", "sly-fox-8"]


@pytest.mark.parametrize("make", [Path.mkdir, Path.touch, lambda path: path.symlink_to("nowhere")])
def test_a_name_that_exists_is_refused(runs: Path, make: Any) -> None:
    runs.mkdir(parents=True)
    make(runs / "mine")
    with pytest.raises(
        UsageError, match="the run mine exists already: give another --run, or resume it with --resume"
    ):
        create("mine")
    assert below(runs) == {"mine"}


def test_a_run_is_created_once_by_concurrent_threads(runs: Path) -> None:
    def attempt(_: int) -> bool:
        try:
            create("same")
        except UsageError:
            return False
        return True

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        assert sorted(pool.map(attempt, range(4))) == [False, False, False, True]
    assert below(runs) == {"same", "same/run.json"}


@pytest.mark.parametrize("call", ["fsync", "replace", "rename"])
def test_a_run_that_cannot_be_written_leaves_no_files(
    runs: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as failing:
        failing.setattr(os, call, fail)
        with pytest.raises(GrimmgenError, match="free some space") as caught:  # fault 15
            create("mine")
    assert caught.value.exit_code == 1
    assert below(runs) == set()
    assert create("mine").info()["order"] == 1


# --- names -----------------------------------------------------------------------------------------------

HOSTILE = [
    *("", ".", "..", "../../x", "a/b", "/abs", "a\\b", "C:x", "~", "-rf", "--run", ".hidden", "_x"),
    *(
        "a\nb",
        "a\n",
        "a\x1b[2J",
        "a\0b",
        "a b",
        "a\u202eb",
        "m\u00e4rchen",
        "\uff41",
        "\u0661",
        "a;b",
        "$HOME",
        "*",
    ),
    *("x" * 65, "x" * 300, "x" * 100_000),
    *("con", "NUL", "nul.txt", "Com1", "lpt9.a.b", "ends.", "latest", "best.safetensors"),
]


@pytest.mark.parametrize("name", HOSTILE, ids=lambda name: ascii(name)[:20])
def test_a_hostile_or_reserved_name_is_refused(home: Path, name: str) -> None:  # fault 29
    for use in (registry.check_name, create) if name == "latest" else (registry.check_name, create, registry.find):
        with pytest.raises(UsageError, match="cannot be the name of a run: ") as caught:
            use(name)
        assert caught.value.exit_code == 2
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) < 600
    assert not home.exists()


@pytest.mark.parametrize("name", ["a", "7", "A-1.b_c", "x" * 64, "console", "nullify", "latest-2", "safetensors"])
def test_a_valid_name_is_accepted(name: str) -> None:
    assert registry.find(create(name).name) == registry.all_runs()[0]


def test_a_run_that_is_a_link_is_refused_and_not_listed(runs: Path, tmp_path: Path) -> None:  # fault 29
    (elsewhere := create("real").path).rename(tmp_path / "elsewhere")
    elsewhere.symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    with pytest.raises(UsageError, match="the run real is a link"):
        registry.find("real")
    with pytest.raises(GrimmgenError, match="there is no run yet"):
        registry.find()
    assert names() == []
    assert (runs / "real" / "run.json").exists()


# --- finding runs ----------------------------------------------------------------------------------------


def test_an_empty_registry_is_an_error_with_a_remedy() -> None:
    for name in (None, "latest"):
        with pytest.raises(GrimmgenError, match="there is no run yet: train one with `grimmgen train`") as caught:
            registry.find(name)
        assert caught.value.exit_code == 1


def test_the_latest_run_does_not_depend_on_the_clock() -> None:  # fault 19
    first, second, third = (create(name) for name in ("zoe", "mia", "ada"))
    for run, time in ((first, 4e9), (second, 0), (third, 1)):
        os.utime(run.path, (time, time))
        os.utime(run.path / "run.json", (time, time))
    assert names() == ["zoe", "mia", "ada"]
    assert registry.find() == registry.find("latest") == third
    registry.make_latest(first, Configuration(epochs=7))
    assert registry.find() == first
    assert first.configuration.epochs == 7
    assert {**first.info(), "order": 1, "configuration": None} == {
        **second.info(),
        "name": "zoe",
        "order": 1,
        "created": first.info()["created"],
        "configuration": None,
    }
    assert create("new") == registry.find()


def test_an_unknown_name_is_an_error_that_lists_the_latest_runs() -> None:
    for number in range(7):
        create(f"run-{number}")
    assert registry.find("run-3").name == "run-3"
    latest = "the latest are: run-2, run-3, run-4, run-5, run-6$"
    for name, near in ("other", ""), ("rnu-3", ", did you mean run-3"), ("lates", ", did you mean latest"):
        with pytest.raises(UsageError, match=f"there is no run {name}{near}: {latest}"):
            registry.find(name)


def test_other_files_in_the_registry_are_ignored(runs: Path) -> None:
    create("mine")
    (runs / "file").touch()
    (runs / ".draft-1234").mkdir()
    assert names() == ["mine"]


def test_an_unreadable_home_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRIMMGEN_HOME", "/" + "x" * 300)
    for use in (registry.find, create):
        with pytest.raises(GrimmgenError) as caught:
            use("mine")
        assert str(caught.value).isprintable()


# --- run.json --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "the run bad has no run.json: remove it with `grimmgen runs rm bad`"),
        (b"", "run.json is not JSON"),
        (b'{"format": 1, "corpus"', "run.json is not JSON"),
        (b"\xff\xfe\0", "run.json is not JSON"),
        (b"[" * 100_000, "run.json is not JSON"),
        (b"[]", "is not the description of a run: remove it with `grimmgen runs rm bad`"),
        (b"{}", "is not the description of a run"),
        (b'{"format": true, "corpus": {}}', "is not the description of a run"),
        (b'{"format": "1", "corpus": {}}', "is not the description of a run"),
        (b'{"format": 1}', "is not the description of a run"),
        (
            b'{"format": 4, "corpus": {}}',
            "run.json has format 4, which is newer than this grimmgen: upgrade grimmgen",
        ),
        (
            b'{"format": 4, "versions": {"grimmgen": "7.3.0"}}',
            "run.json, written by grimmgen 7.3.0, has format 4, which is newer than this grimmgen: upgrade grimmgen",
        ),
    ],
)
def test_a_damaged_run_json_does_not_affect_other_runs(content: bytes | None, message: str) -> None:
    good, bad = create("good"), create("bad")
    (bad.path / "run.json").unlink()
    if content is not None:
        (bad.path / "run.json").write_bytes(content)
    with pytest.raises(IntegrityError, match=re.escape(message)) as caught:
        bad.info()
    assert caught.value.exit_code == 3
    assert names() == ["bad", "good"], "a run without an order is the oldest"
    assert registry.find() == good
    assert create("next").info()["order"] == 2
    bad.remove()
    assert names() == ["good", "next"]


@pytest.mark.parametrize("order", [None, "9", True, 9.5, [9], -9, 10**4299])
def test_a_run_with_an_invalid_order_is_never_the_latest(order: object) -> None:
    create("good")
    bad = create("bad")
    info = bad.info()
    (bad.path / "run.json").write_text(json.dumps(info | {"order": order}))
    assert registry.find().name == "good"


def test_the_split_of_a_run_names_missing_documents(tmp_path: Path) -> None:
    for name in ("one", "two", "three"):
        (tmp_path / f"{name}.txt").write_text(f"The tale of {name}.")
    corpus = open_corpus(str(tmp_path))
    split = Split({"train": corpus.documents[:1], "valid": corpus.documents[1:2], "test": corpus.documents[2:]})
    run = registry.create("mine", Configuration(), corpus, split, "grimmgen train", {})
    assert run.split().sha256 == split.sha256
    (tmp_path / "one.txt").unlink()
    with pytest.raises(IntegrityError, match="'one'"):
        run.split()


def test_an_invalid_configuration_is_an_error() -> None:
    run = create()
    info = run.info()
    info["configuration"]["hidden"] = 0
    (run.path / "run.json").write_text(json.dumps(info))
    with pytest.raises(IntegrityError, match="--hidden 0 is out of range"):
        _ = run.configuration


# --- removing, locking -----------------------------------------------------------------------------------


def test_the_name_of_a_removed_run_is_free(runs: Path) -> None:
    run = create("mine")
    create("other")
    tiny_checkpoint().write(run.best_path)
    run.remove()
    assert below(runs) == {"other", "other/run.json"}
    assert create("mine").info()["order"] == 3


def test_a_locked_run_cannot_be_removed_or_trained() -> None:  # fault 36
    run, other = create("mine"), create("other")
    with run.locked():
        with pytest.raises(
            GrimmgenError, match=f"the run mine is in use by process {os.getpid()}: wait for it to end"
        ):
            run.remove()
        with pytest.raises(GrimmgenError, match="is in use"), Run(run.path).locked():
            pytest.fail("locked twice")
        assert run.info()["name"] == "mine"
        with other.locked():
            assert names() == ["mine", "other"]
    run.remove()
    assert names() == ["other"]


def test_locking_a_run_removes_files_of_killed_processes(runs: Path) -> None:  # fault 10
    run = create("mine")
    dead, living = (run.path / f".last.safetensors.{pid}.0123abcd.tmp" for pid in (999_999_999, os.getpid()))
    dead.touch()
    living.touch()
    with run.locked():
        assert below(runs) == {"mine", "mine/run.json", f"mine/{living.name}"}


def test_a_run_removed_by_another_process_is_an_error(runs: Path) -> None:
    gone = Run(runs / "gone")
    for use in (gone.size, gone.remove, lambda: gone.append_log({}), lambda: gone.cut_log(0)):
        with pytest.raises(GrimmgenError, match="No such file or directory"):
            use()
    with pytest.raises(IntegrityError, match=r"the run gone has no run\.json"):
        gone.info()


# --- the log ---------------------------------------------------------------------------------------------


def test_events_are_logged_one_per_line() -> None:
    run = create()
    events: list[dict[str, Any]] = [
        {"event": "started", "text": "a\nb\u2028\u00e4\U0001f43a\0"},
        {"event": "evaluated", "step": 1, "loss": 0.1},
    ]
    for event in events:
        run.append_log(event)
    assert run.log() == events
    assert run.log_path.read_bytes().count(b"\n") == 2


def test_nan_is_not_logged() -> None:
    run = create()
    with pytest.raises(ValueError, match="not JSON compliant"):
        run.append_log({"loss": float("nan")})
    assert run.log() == []


def test_a_corpus_name_that_is_not_unicode_is_logged() -> None:
    run, event = create(), {"corpus": os.fsdecode(b"caf\xe9"), "step": 1}
    run.append_log(event)
    run.cut_log(1)
    assert run.log() == [event]


def test_lines_that_are_not_events_are_left_out() -> None:
    run = create()
    odd = [b"", b"[1]", b"7", b'{"step": NaN}', b'{"step": 1e999}', b"\xff\xfe", b"[" * 100_000]
    run.log_path.write_bytes(b"\n".join([b'{"step": 1}', *odd, b'{"step": 2}', b'{"step": 3, "torn']))
    assert run.log() == [{"step": 1}, {"step": 2}]


def test_the_log_is_cut_at_a_step_and_an_incomplete_line() -> None:
    run = create()
    events: list[dict[str, Any]] = [
        {"event": "started"},
        {"event": "evaluated", "step": 10},
        {"event": "finished", "step": 10},
        {"event": "evaluated", "step": 11},
    ]
    for event in events:
        run.append_log(event)
    with run.log_path.open("ab") as file:
        file.write(b'{"event": "evaluated", "st')
    run.cut_log(10)
    run.append_log({"event": "evaluated", "step": 12})
    assert run.log() == [*events[:2], {"event": "evaluated", "step": 12}]


# --- checkpoints of runs ---------------------------------------------------------------------------------


def test_a_model_is_loaded_by_run_or_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = create("old"), create("new")
    for seed, path in enumerate((old.best_path, new.last_path, new.best_path, tmp_path / "copy.safetensors")):
        tiny_checkpoint(run=path.parent.name, random_seed=seed).write(path)

    def found(run_or_path: str | None) -> tuple[str, int]:
        model = registry.load_model(run_or_path)
        return model.name, model.checkpoint.configuration.random_seed

    assert registry.load_model().run == new
    assert registry.load_model("old").run == old
    assert registry.load_model(str(tmp_path / "copy.safetensors")).run is None
    assert found(None) == found("new") == found("latest") == ("new", 2)
    assert found("old") == ("old", 0)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for typed in (
        str(tmp_path / "copy.safetensors"),
        "copy.safetensors",
        "./copy.safetensors",
        "~/copy.safetensors",
    ):
        assert found(typed) == (typed, 3)
    new.best_path.unlink()
    assert found("new") == ("new", 1), "the last checkpoint, before the first evaluation"


@pytest.mark.parametrize(
    ("typed", "error", "message"),
    [
        (
            "mine",
            GrimmgenError,
            "the run mine has no checkpoint: train it with `grimmgen train --resume --run mine`",
        ),
        ("other", UsageError, "there is no run other: the latest are: mine"),
        ("./gone", GrimmgenError, "cannot read gone (No such file or directory)"),
        ("gone.safetensors", GrimmgenError, "cannot read gone.safetensors (No such file or directory)"),
        ("/", GrimmgenError, "cannot read / (Is a directory)"),
        ("~no such user/x.safetensors", UsageError, "there is no such user"),
        ("a\0/b", UsageError, "'a\\x00/b' cannot be a path"),
        ("/" + "x" * 300, GrimmgenError, "(File name too long)"),
        ("/dev/null", GrimmgenError, "cannot read /dev/null (Not a regular file)"),
        ("/dev/zero", GrimmgenError, "cannot read /dev/zero (Not a regular file)"),
        ("bad name", UsageError, "cannot be the name of a run"),
    ],
)
def test_a_missing_model_is_one_line(typed: str, error: type[GrimmgenError], message: str) -> None:
    create("mine")
    with pytest.raises(GrimmgenError, match=re.escape(message)) as caught:
        registry.load_model(typed)
    assert type(caught.value) is error


def test_a_damaged_best_checkpoint_is_an_error() -> None:  # fault 30
    run = create("mine")
    tiny_checkpoint(True).write(run.last_path)
    run.best_path.write_bytes(run.last_path.read_bytes()[:-1])
    with pytest.raises(IntegrityError, match=re.escape(f"{run.best_path} is incomplete")):
        registry.load_model("mine")
    assert Checkpoint.read(run.last_path).progress == {"step": 7}


def test_a_dangling_best_checkpoint_is_an_error() -> None:  # fault 30
    run = create("mine")
    tiny_checkpoint(True).write(run.last_path)
    run.best_path.symlink_to(run.path / "gone")
    with pytest.raises(GrimmgenError, match=re.escape(str(run.best_path))):
        registry.load_model("mine")


def test_the_next_change_removes_incomplete_runs(runs: Path, tmp_path: Path) -> None:  # fault 10
    run = create("mine")
    (tmp_path / "elsewhere").write_text("stays")
    for name in (".draft-0123abcd", ".removed-0123abcd"):
        (runs / name).mkdir()
        (runs / name / "run.json").touch()
    (runs / ".removed-link").symlink_to(tmp_path)
    registry.make_latest(run, Configuration())
    assert below(runs) - {".removed-link"} == {"mine", "mine/run.json"}
    assert (tmp_path / "elsewhere").exists()


# --- the latest run (fault 55) ----------------------------------------------------------------------------


def saved(run: Run, **options: Any) -> Run:
    """Save a checkpoint of a run as a training does."""
    checkpoint = tiny_checkpoint(True, run.name, **options)
    provenance = {**checkpoint.provenance, "run_sha256": registry.run_sha256(run.info())}
    dataclasses.replace(checkpoint, provenance=provenance).write(run.last_path)
    return run


def test_a_run_without_a_checkpoint_is_never_the_latest() -> None:
    good, begun = saved(create("good")), create("begun")
    assert registry.find() == registry.find("latest") == registry.load_model().run == good
    assert registry.newer_without_checkpoint(good) == begun
    saved(begun)
    assert registry.find() == registry.load_model().run == begun
    assert registry.newer_without_checkpoint(begun) is None
    registry.make_latest(good, Configuration())
    assert registry.find() == good


@pytest.mark.parametrize("path", ["best_path", "last_path", "previous_path"])
def test_a_run_with_any_checkpoint_can_be_the_latest(path: str) -> None:
    saved(create("good"))
    newer = create("newer")
    # Even if it is a dangling link: that is an error, and no reason to use another run in its place.
    getattr(newer, path).symlink_to("gone")
    assert registry.find() == newer


def test_before_any_checkpoint_the_last_run_is_the_latest() -> None:
    create("first")
    last = create("last")
    assert registry.find() == last
    with pytest.raises(
        GrimmgenError, match=r"the run last has no checkpoint: train it with .*--resume --run last`"
    ):
        registry.load_model("last")
    with last.locked(), pytest.raises(GrimmgenError, match="last has no checkpoint yet: wait for its first eval"):
        registry.load_model("last")
    assert registry.load_model().name == "grimm"


def test_a_run_knows_the_process_that_trains_it() -> None:
    run = create("mine")
    assert run.trainer is None
    with run.locked():
        assert run.trainer == f"process {os.getpid()}"
        assert create("other").trainer is None
    assert run.trainer is None
    # A killed process leaves its number, but not its lock.
    (run.path.parent / ".locks" / "mine.pid").write_text("1")
    assert run.trainer is None


def test_a_lock_may_be_released_by_another_thread() -> None:
    run, lock = create("mine"), contextlib.ExitStack()
    lock.enter_context(run.locked())
    thread = threading.Thread(target=lock.close)
    thread.start()
    thread.join()
    with run.locked():
        assert run.trainer


# --- runs that ended without a checkpoint -----------------------------------------------------------------


def test_a_run_that_ended_without_a_checkpoint_is_replaced(runs: Path) -> None:
    failed = create("mine", Configuration(hidden=7))
    failed.append_log({"event": "started"})
    again = create("mine", Configuration(hidden=8))
    assert again.configuration.hidden == 8
    assert again.log() == []
    assert below(runs) - {".removed"} == {"mine", "mine/run.json"} | {
        name for name in below(runs) if name.startswith(".removed-")
    }
    create("other")
    assert below(runs) == {"mine", "mine/run.json", "other", "other/run.json"}


def test_a_run_in_training_or_with_a_checkpoint_is_kept() -> None:
    run = create("mine")
    # Its training is about to begin: there is no log yet.
    with pytest.raises(UsageError, match="exists already"):
        create("mine")
    run.append_log({"event": "started"})
    with run.locked(), pytest.raises(UsageError, match="exists already"):
        create("mine")
    for path in (run.best_path, run.last_path, run.previous_path):
        path.touch()
        with pytest.raises(UsageError, match="exists already"):
            create("mine")
        path.unlink()
    assert run.log() == [{"event": "started"}]


# --- checkpoints of other runs ----------------------------------------------------------------------------


@pytest.mark.parametrize("hashed", [True, False])
def test_a_checkpoint_of_another_run_is_refused(hashed: bool) -> None:
    one, other = create("one"), create("other")
    saved(other)
    if not hashed:  # as in earlier versions
        tiny_checkpoint(True, "other").write(other.last_path)
        assert registry.load_model("other").run == other
    one.best_path.write_bytes(other.last_path.read_bytes())
    message = f"{one.best_path} is not a checkpoint of the run one, but of another one other"
    for load in (lambda: registry.load_model("one"), registry.find("one").checkpoint):
        with pytest.raises(IntegrityError, match=re.escape(message)):
            load()
    # As a file it is what it is.
    assert registry.load_model(str(one.best_path)).run is None


def test_a_run_of_the_same_name_is_another_run() -> None:
    content = saved(create("mine")).last_path.read_bytes()
    info = registry.find("mine").info()
    registry.find("mine").remove()
    again = create("mine")
    (again.path / "run.json").write_text(json.dumps({**again.info(), "created": "2001-01-01T00:00:00+00:00"}))
    again.last_path.write_bytes(content)
    with pytest.raises(IntegrityError, match="not a checkpoint of the run mine, but of another one:"):
        registry.load_model("mine")
    (again.path / "run.json").write_text(json.dumps({**info, "order": 9, "configuration": {}}))
    assert registry.load_model("mine").run == again, "what a resume changes is not part of the hash"


def test_a_renamed_run_is_the_same_run(runs: Path) -> None:
    saved(create("mine")).path.rename(runs / "renamed")
    assert registry.load_model("renamed").name == "renamed"


def test_a_loaded_model_keeps_the_stories_of_its_run(tmp_path: Path) -> None:
    for corpus in ("old", "new"):
        (tmp_path / corpus).mkdir()
        for name in ("one", "two", "three"):
            (tmp_path / corpus / f"{name}.txt").write_text(f"The {corpus} tale of {name}.")

    def train(corpus: str) -> None:
        text = open_corpus(str(tmp_path / corpus))
        parts = dict(zip(("train", "valid", "test"), ((d,) for d in text.documents), strict=True))
        saved(registry.create("mine", Configuration(), text, Split(parts), "", {}))  # type: ignore[arg-type]

    train("old")
    model = registry.load_model("mine")
    registry.find("mine").remove()
    train("new")
    [document] = model.split().parts["train"]
    assert "The old tale" in document.read()


def test_a_file_that_is_no_checkpoint_is_named_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("notes.txt").write_text("the king", encoding="utf-8")
    with pytest.raises(UsageError, match=r"notes\.txt is .*, not a run or a checkpoint"):
        registry.find("notes.txt")
