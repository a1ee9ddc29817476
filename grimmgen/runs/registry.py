"""The runs on disk: one directory each, with its checkpoints, its log and what it was made of.

    run.json                configuration, corpus and split, versions, command; `order` says which run is latest
    log.jsonl               one event a line
    best.safetensors        weights only, chosen by validation
    last.safetensors        everything that a bit-exact resume needs
    previous.safetensors    the last one before that, for a resume that finds the last one damaged

Knows files and names, and nothing of training. Imports no PyTorch.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grimmgen.configuration import Configuration
from grimmgen.errors import GrimmgenError, IntegrityError, UsageError
from grimmgen.io import files, paths
from grimmgen.runs.checkpoint import Checkpoint

if TYPE_CHECKING:
    # What lists runs or tells with one needs no corpus, and not the HTTP library that comes with it.
    from grimmgen.text.corpus import Corpus
    from grimmgen.text.split import Split

LATEST = "latest"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
# Names that Windows keeps for devices, whatever follows a dot; and what would be taken for a file.
_RESERVED = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?|.*\.|.*\.safetensors", re.IGNORECASE)
_FORMAT = 1
# Some 250,000 evaluations. A stranger's may be of holes, and larger than the memory.
_LARGEST_LOG = 64 << 20

_ADJECTIVES = (
    "amber brave bright clever crooked dappled drowsy frosty gentle golden hidden hollow honest hungry idle iron "
    "jolly kindly lonely lucky merry mossy nimble patient proud quiet red rusty seventh silver sleepy sly small "
    "stubborn thorny valiant wandering wicked wise young"
).split()
_NOUNS = (
    "apple bear bell blacksmith bridge cat cobbler cock comb crow donkey drummer duck fiddle fish forest fox frog "
    "gander goose hare hedgehog hunter kettle king lantern mill miller mouse nail needle owl queen raven ring "
    "rose shepherd shoe spindle stork tailor table thimble tower turnip well wolf"
).split()


@dataclass(frozen=True)
class Run:
    """A directory of the registry; it may be removed at any moment by another process.

    Attributes:
        path: the directory.
    """

    path: Path

    @property
    def name(self) -> str:
        """The run's name."""
        return self.path.name

    @property
    def best_path(self) -> Path:
        """The weights with the lowest validation perplexity so far."""
        return self.path / "best.safetensors"

    @property
    def last_path(self) -> Path:
        """What a resume continues from."""
        return self.path / "last.safetensors"

    @property
    def previous_path(self) -> Path:
        """What `last_path` held before, for a resume that finds that damaged."""
        return self.path / "previous.safetensors"

    @property
    def log_path(self) -> Path:
        """The log."""
        return self.path / "log.jsonl"

    def info(self) -> dict[str, Any]:
        """What run.json holds.

        Raises:
            IntegrityError: it is missing, unreadable or of a future format.
        """
        path = self.path / "run.json"
        try:
            value: dict[str, Any] = files.read_json(path)
        except FileNotFoundError:
            raise IntegrityError(f"the run {self.name} has no run.json", self._remedy) from None
        match value:
            case {"format": int(newer)} if newer > _FORMAT:
                raise IntegrityError(f"{path} has the format {newer}", "upgrade grimmgen")
            case {"format": int(), "corpus": {"name": str(), "source": str(), "split": dict()}}:
                pass
            case _:
                raise IntegrityError(f"{path} does not describe a run", self._remedy)
        return value

    @property
    def configuration(self) -> Configuration:
        """The options that the run was begun with."""
        return Configuration.from_json(self.info().get("configuration"))

    def split(self) -> Split:
        """The stories of each part, as they were; what has changed since is noticed when it is read.

        Raises:
            GrimmgenError: the corpus is no longer there.
            IntegrityError: the run is not described as it should be, or a story is gone.
        """
        from grimmgen.text.corpus import open_corpus
        from grimmgen.text.split import Split

        corpus = self.info()["corpus"]
        return Split.from_json(corpus["split"], open_corpus(corpus["source"]))

    def checkpoint(self) -> Checkpoint:
        """The best weights so far, or the last ones where no evaluation has been yet.

        Raises:
            GrimmgenError: training has saved nothing yet.
            IntegrityError: the file is not what it should be.
        """
        for path in (self.best_path, self.last_path):
            # Also a link that leads nowhere: what should be the best is not passed over.
            if os.path.lexists(path):
                return Checkpoint.read(path)
        raise GrimmgenError(f"the run {self.name} has saved nothing yet", "wait for its first evaluation")

    def log(self) -> list[dict[str, Any]]:
        """The events that were logged; a line that a crash has torn is left out.

        Raises:
            GrimmgenError: it cannot be read.
            IntegrityError: it is larger than any training makes it.
        """
        events = []
        try:
            with (
                files.wrap_os_errors(f"cannot read {self.log_path}", missing_ok=True),
                files.open_regular(self.log_path) as file,
            ):
                content = file.read(_LARGEST_LOG + 1)
        except FileNotFoundError:
            return []
        if len(content) > _LARGEST_LOG:
            raise IntegrityError(f"{self.log_path} is larger than {_LARGEST_LOG >> 20} MB", "remove it")
        for line in content.splitlines():
            with contextlib.suppress(ValueError, RecursionError):
                event = files.parse_json(line)
                if isinstance(event, dict):
                    events.append(event)
        return events

    def append_log(self, event: Mapping[str, Any]) -> None:
        """Add one line to the log."""
        line = json.dumps(event, ensure_ascii=False, allow_nan=False) + "\n"
        # A corpus may be named after a file whose name is no Unicode.
        with files.wrap_os_errors(f"cannot write {self.log_path}"), self.log_path.open("ab") as file:
            file.write(line.encode("utf-8", "surrogatepass"))

    def cut_log(self, step: int) -> None:
        """Drop what was logged after this step, so that a resume writes it again, once."""
        kept = [event for event in self.log() if _integer(event.get("step")) <= step]
        kept = [event for event in kept if event.get("event") != "finished"]
        text = "".join(json.dumps(event, ensure_ascii=False) + "\n" for event in kept)
        files.write_atomically(self.log_path, text.encode("utf-8", "surrogatepass"))

    def size(self) -> int:
        """Bytes on the disk."""
        total = 0
        with files.wrap_os_errors(f"cannot read {self.path}"):
            for path in self.path.iterdir():
                with contextlib.suppress(OSError):
                    total += path.stat().st_size
        return total

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other trainings out of this run.

        Raises:
            GrimmgenError: another process is training it.
        """
        # Beside the runs, not in them: Windows renames no directory that has an open file in it.
        locks = self.path.parent / ".locks"
        files.make_directory(locks)
        with files.locked(locks / self.name, f"the run {self.name}"):
            files.sweep(self.path)
            yield

    def remove(self) -> None:
        """Remove the directory with all that is in it.

        Raises:
            GrimmgenError: it is being trained, or cannot be removed.
        """
        with _changing(self.path.parent):
            with self.locked():
                # Renamed first: a run is there whole, or not there.
                doomed = self.path.with_name(f".removed-{secrets.token_hex(4)}")
                with files.wrap_os_errors(f"cannot remove {self.path}"):
                    self.path.rename(doomed)
            with files.wrap_os_errors(f"cannot remove {doomed}"):
                shutil.rmtree(doomed)

    @property
    def _remedy(self) -> str:
        return f"remove it with `grimmgen runs rm {self.name}`"


def create(
    name: str | None,
    configuration: Configuration,
    corpus: Corpus,
    split: Split,
    command: str,
    versions: Mapping[str, str],
) -> Run:
    """Make a new run.

    Args:
        name: of the run; None makes one up.
        configuration: the options of training.
        corpus: what it learns from.
        split: which stories are in which part.
        command: that began it.
        versions: of the programs that made it.

    Raises:
        UsageError: the name cannot be one, or is taken.
    """
    directory = paths.runs_directory()
    if name is not None:
        check_name(name)
    with _changing(directory):
        name = name or _made_up(directory)
        run = Run(directory / name)
        if run.path.exists() or run.path.is_symlink():
            raise UsageError(f"there is a run {name} already", "give another --run, or --resume to go on with it")
        # Made complete under another name, so that no run is ever seen without its run.json.
        draft = Run(directory / f".draft-{secrets.token_hex(4)}")
        files.make_directory(draft.path)
        try:
            files.write_json(
                draft.path / "run.json",
                {
                    "format": _FORMAT,
                    "name": name,
                    "order": _next_order(directory),
                    "created": datetime.now(UTC).isoformat(timespec="seconds"),
                    "command": command,
                    "versions": dict(versions),
                    "configuration": configuration.to_json(),
                    "corpus": {
                        "name": corpus.name,
                        "source": corpus.source,
                        "sha256": split.sha256,
                        "split": split.to_json(),
                    },
                },
            )
            with files.wrap_os_errors(f"cannot make the run {run.path}"):
                draft.path.rename(run.path)
        except BaseException:
            shutil.rmtree(draft.path, ignore_errors=True)
            raise
    return run


def make_latest(run: Run, configuration: Configuration) -> None:
    """Note that a run is gone on with: it is the latest now, with these limits of training."""
    directory = run.path.parent
    with _changing(directory):
        value = {**run.info(), "order": _next_order(directory), "configuration": configuration.to_json()}
        files.write_json(run.path / "run.json", value)


def find(name: str | None = None) -> Run:
    """The run of that name; the latest one without a name.

    Raises:
        GrimmgenError: there is no run at all.
        UsageError: there is none of that name.
    """
    runs = all_runs()
    if name is None or name == LATEST:
        if not runs:
            raise GrimmgenError("there is no run yet", "train one with `grimmgen train`")
        return runs[-1]
    check_name(name)
    run = Run(paths.runs_directory() / name)
    if run.path.is_symlink():
        raise UsageError(f"the run {name} is a link", "give the run that it leads to")
    if not run.path.is_dir():
        near = ", ".join(r.name for r in runs[-5:]) or "none"
        raise UsageError(f"there is no run {name}", f"the latest are: {near}")
    return run


def find_checkpoint(run_or_path: str | None) -> tuple[str, Checkpoint]:
    """The checkpoint of a run, of the latest one (None), or of a file; and what to call it.

    Raises:
        GrimmgenError: there is no such run or file, or it cannot be read.
        IntegrityError: the file is not what it should be.
    """
    if run_or_path is not None and (run_or_path.endswith(".safetensors") or "/" in run_or_path):
        try:
            path = Path(run_or_path).expanduser()
        except RuntimeError:
            raise UsageError(f"{run_or_path!r}: there is no such user", "check the path") from None
        if "\0" in run_or_path:
            raise UsageError(f"{run_or_path!r} cannot be a path", "leave out the NUL character")
        return run_or_path, Checkpoint.read(path)
    run = find(run_or_path)
    return run.name, run.checkpoint()


@dataclass(frozen=True)
class TrainedModel:
    """A trained model, resolved once from what the user typed, and passed on from there.

    Attributes:
        name: of the run, or the path of the file.
        checkpoint: its weights and vocabulary.
        run: where it comes from; None for a checkpoint file outside the registry.
    """

    name: str
    checkpoint: Checkpoint
    run: Run | None = None


def load_model(run_or_path: str | None) -> TrainedModel:
    """The model of a run, of the latest run (None), or of a checkpoint file.

    Raises:
        GrimmgenError: there is no such run or file, or it cannot be read.
        IntegrityError: the file is not what it should be.
    """
    if run_or_path is not None and (run_or_path.endswith(".safetensors") or "/" in run_or_path):
        return TrainedModel(*find_checkpoint(run_or_path))
    run = find(run_or_path)
    return TrainedModel(run.name, run.checkpoint(), run)


def all_runs() -> list[Run]:
    """Every run, the latest last."""
    directory = paths.runs_directory()
    with files.wrap_os_errors(f"cannot read {directory}"):
        if not directory.is_dir():
            return []
        found = [
            Run(path)
            for path in directory.iterdir()
            if _NAME.fullmatch(path.name) and path.is_dir() and not path.is_symlink()
        ]
    return sorted(found, key=lambda run: (_order(run), run.name))


def check_name(name: str) -> None:
    """Refuse a name that could lead out of the registry or confuse a shell, a terminal or a file system.

    Raises:
        UsageError: it does.
    """
    if not _NAME.fullmatch(name) or _RESERVED.fullmatch(name) or name == LATEST:
        raise UsageError(
            f"{name[:80]!r} cannot be the name of a run",
            "give letters, digits, dots, dashes and underscores, 64 at most, a letter or digit first",
        )


@contextlib.contextmanager
def _changing(directory: Path) -> Iterator[None]:
    """Keep others from making or removing runs; what was half made or half removed by the dead goes first."""
    files.make_directory(directory)
    with files.locked(directory / ".lock", "the registry", timeout=30.0):
        for stale in (*directory.glob(".draft-*"), *directory.glob(".removed-*")):
            shutil.rmtree(stale, ignore_errors=True)
        yield


def _order(run: Run) -> int:
    # Never from a file's time: clocks jump, copies are new.
    try:
        order = _integer(run.info().get("order"))
    except GrimmgenError:
        return -1
    # One of thousands of digits could not be written when it is added to.
    return order if order < 1 << 53 else -1


def _next_order(directory: Path) -> int:
    orders = [_order(Run(path)) for path in directory.iterdir() if _NAME.fullmatch(path.name)]
    return max(orders, default=0) + 1


def _made_up(directory: Path) -> str:
    while True:
        name = f"{secrets.choice(_ADJECTIVES)}-{secrets.choice(_NOUNS)}"
        if (directory / name).exists():
            name += f"-{secrets.randbelow(1000)}"
        if not (directory / name).exists():
            return name


def _integer(value: object) -> int:
    return value if type(value) is int else 0
