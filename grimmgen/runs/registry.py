"""The runs on disk: one directory each, with its checkpoints, its log and its description.

    run.json                configuration, corpus, split, versions, command; a later run has a larger `order`
    log.jsonl               one event per line
    best.safetensors        the weights with the lowest validation perplexity
    last.safetensors        everything that a bit-exact resume needs
    previous.safetensors    the last checkpoint but one, used if the last one is damaged
    base.safetensors        the weights that the training started from, if it started from those of another model
    targets.ids             samples of the teachers' predictions, if the run is distilled (`training.distillation`)

A checkpoint has the hash of its run, and is refused in the directory of another one. The latest run is the last one
that has a checkpoint. Where there is none, the bundled model serves: a checkpoint in the package, which is no run.

Formats of run.json: 1; 2, which differs from it only in that grimmgen 0.1.0 refuses it by its number instead of by the
options that it does not know; and 3, of a run with teachers, which earlier versions would resume without them.

Knows files and names, and nothing of training. Imports no PyTorch.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grimmgen.configuration import Configuration
from grimmgen.errors import GrimmgenError, IntegrityError, UsageError, did_you_mean
from grimmgen.io import files, paths
from grimmgen.reading import file_kinds
from grimmgen.runs.checkpoint import Checkpoint, written_by

if TYPE_CHECKING:
    # Neither listing runs nor generating text needs a corpus, and the HTTP library that comes with it.
    from grimmgen.text.corpus import Corpus
    from grimmgen.text.split import Split

LATEST = "latest"
# The bundled model, which benchmarks/pretrained.py makes. A run of its name, of an earlier version, comes first.
PRETRAINED = "grimm"
PRETRAINED_TITLE = f"bundled model {PRETRAINED}, trained on tales of the Brothers Grimm"
# importlib.resources takes as long to import as the file to read.
PRETRAINED_PATH = Path(__file__).parents[1] / "data" / "pretrained" / "grimm.safetensors"
# Of the files that a model is loaded from by their path.
CHECKPOINT_SUFFIXES = (".safetensors", ".html")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
# Names that Windows reserves for devices, with any extension; and names that look like a file.
_RESERVED = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?|.*\.|.*\.(safetensors|html)", re.IGNORECASE)
_FORMAT = 3
# In bytes: some 250,000 evaluations. An untrusted file may be sparse, and larger than the memory.
_LARGEST_LOG = 64 << 20

_ADJECTIVES = (
    "amber brave bright clever crooked dappled drowsy frosty gentle golden hidden hollow honest hungry idle iron "
    "jolly kindly lonely lucky merry mossy nimble patient proud quiet red rusty seventh silver sleepy sly small "
    "stubborn thorny valiant wandering wicked wise young"
).split()
_NOUNS = (
    "apple bear bell blacksmith bridge cat cobbler comb crow donkey drummer duck fiddle fish forest fox frog "
    "gander goose hare hedgehog hunter kettle king lantern mill miller mouse nail needle owl queen raven ring rooster "
    "rose shepherd shoe spindle stork tailor table thimble tower turnip well wolf"
).split()


@dataclass(frozen=True)
class Run:
    """A run: a directory of the registry. Another process may remove it at any time.

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
        """Path of the weights with the lowest validation perplexity so far."""
        return self.path / "best.safetensors"

    @property
    def last_path(self) -> Path:
        """Path of the checkpoint that a resume starts from."""
        return self.path / "last.safetensors"

    @property
    def previous_path(self) -> Path:
        """Path of the last checkpoint but one, used if the last one is damaged."""
        return self.path / "previous.safetensors"

    @property
    def base_path(self) -> Path:
        """Path of the copy of the model that training started from."""
        return self.path / "base.safetensors"

    @property
    def targets_path(self) -> Path:
        """Path of the samples of the teachers' predictions that the run is trained with."""
        return self.path / "targets.ids"

    def base(self) -> Checkpoint | None:
        """The model that training started from; None if it started from random weights.

        Raises:
            IntegrityError: the copy of it is missing or damaged.
        """
        match self.info().get("base"):
            case None:
                return None
            case {"name": str(), "copy_sha256": str(expected)}:
                if not self.base_path.is_file():
                    raise IntegrityError(f"{self.base_path}, which the run starts from, is missing", self._remedy)
                base = Checkpoint.read(self.base_path)
                if base.sha256 == expected:
                    return base
        raise IntegrityError(f"{self.base_path} is not the model that the run started from", self._remedy)

    @property
    def log_path(self) -> Path:
        """Path of the log."""
        return self.path / "log.jsonl"

    def info(self) -> dict[str, Any]:
        """Read run.json.

        Raises:
            IntegrityError: it is missing, unreadable or of a newer format.
        """
        path = self.path / "run.json"
        try:
            value: dict[str, Any] = files.read_json(path)
        except FileNotFoundError:
            raise IntegrityError(f"the run {self.name} has no run.json", self._remedy) from None
        match value:
            case {"format": int(newer)} if newer > _FORMAT:
                writer = written_by(value.get("versions"))
                source = f", written by {writer}," if writer else ""
                raise IntegrityError(
                    f"{path}{source} has format {newer}, which is newer than this grimmgen", "upgrade grimmgen"
                )
            case {"format": int(), "corpus": {"name": str(), "source": str() | list(), "split": dict()}}:
                pass
            case _:
                raise IntegrityError(f"{path} is not the description of a run", self._remedy)
        return value

    @property
    def configuration(self) -> Configuration:
        """The options of the run, with the limits of its last resume."""
        info = self.info()
        return Configuration.from_json(info.get("configuration"), written_by(info.get("versions")))

    def split(self, moved_to: Sequence[str] = ()) -> Split:
        """Return the documents of each set. A document that has changed since raises an error when it is read.

        Args:
            moved_to: where the corpus is now; empty if it is where it was.

        Raises:
            GrimmgenError: the corpus does not exist any more.
            IntegrityError: run.json is damaged, or a document is missing.
        """
        return _split(self.info(), moved_to)

    @property
    def has_checkpoint(self) -> bool:
        """Whether anything has been saved."""
        # A dangling link counts: it is an error when it is read, and never a reason to take another run.
        return any(map(os.path.lexists, (self.best_path, self.last_path, self.previous_path)))

    @property
    def trainer(self) -> str | None:
        """The process that trains the run, as in `process 123`; None if there is none."""
        return files.lock_holder(self._lock_path)

    def load(self, moved_to: Sequence[str] = ()) -> TrainedModel:
        """Load the best checkpoint; before the first evaluation, the last one.

        Args:
            moved_to: where the corpus is now; empty if it is where it was.

        Raises:
            GrimmgenError: nothing has been saved yet.
            IntegrityError: the checkpoint is damaged or belongs to another run, or run.json is damaged.
        """
        info = self.info()
        for path in (self.best_path, self.last_path):
            # A dangling link is an error: the last checkpoint must not replace the best one silently.
            if os.path.lexists(path):
                return TrainedModel(self.name, self.read_own(path, info), self, info, tuple(moved_to))
        if self.trainer:
            raise GrimmgenError(f"the run {self.name} has no checkpoint yet", "wait for its first evaluation")
        raise GrimmgenError(
            f"the run {self.name} has no checkpoint", f"train it with `grimmgen train --resume --run {self.name}`"
        )

    def checkpoint(self) -> Checkpoint:
        """Read the checkpoint that `load` loads; raises the same errors."""
        return self.load().checkpoint

    def read_own(self, path: Path, info: Mapping[str, Any]) -> Checkpoint:
        """Read a checkpoint in this directory that has to be one of this run.

        Args:
            path: of the checkpoint.
            info: the content of run.json.

        Raises:
            GrimmgenError: it cannot be read.
            IntegrityError: it is damaged, or belongs to another run.
        """
        checkpoint = Checkpoint.read(path)
        name, recorded = (checkpoint.provenance.get(key) for key in ("run", "run_sha256"))
        # Earlier versions recorded the name only.
        same = recorded == run_sha256(info) if recorded is not None else name in (None, info.get("name"))
        if not same:
            other = f" {name}" if isinstance(name, str) and name != self.name and _NAME.fullmatch(name) else ""
            raise IntegrityError(
                f"{path} is not a checkpoint of the run {self.name}, but of another one{other}",
                "copy the right one back; generate and eval take this one by its path (--run)",
            )
        return checkpoint

    def log(self) -> list[dict[str, Any]]:
        """Read the logged events; incomplete lines, as after a crash, are left out.

        Raises:
            GrimmgenError: the log cannot be read.
            IntegrityError: the log is larger than that of any training.
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
        """Append an event to the log."""
        line = json.dumps(event, ensure_ascii=False, allow_nan=False) + "\n"
        # The name of a corpus may be a file name that is not valid Unicode.
        with files.wrap_os_errors(f"cannot write {self.log_path}"), self.log_path.open("ab") as file:
            file.write(line.encode("utf-8", "surrogatepass"))

    def cut_log(self, evaluated: int, step: int = -1) -> None:
        """Remove what a resume logs again: the end, events after the last evaluation, and those after the last step.

        Args:
            evaluated: step of the last evaluation that the checkpoint includes.
            step: the step of the checkpoint, to which changes of the platform are kept.
        """
        last = {"finished": -1, "failed": -1, "platform changed": step}
        kept = [e for e in self.log() if _integer(e.get("step")) <= last.get(str(e.get("event")), evaluated)]
        text = "".join(json.dumps(event, ensure_ascii=False) + "\n" for event in kept)
        files.write_atomically(self.log_path, text.encode("utf-8", "surrogatepass"))

    def size(self) -> int:
        """Return the size of the run's files in bytes, with those of its directories, as `tensorboard` is one."""
        total = 0
        with files.wrap_os_errors(f"cannot read {self.path}"):
            self.path.stat()  # `rglob` finds nothing where there is no directory
            for path in self.path.rglob("*"):
                with contextlib.suppress(OSError):
                    total += path.stat().st_size if path.is_file() else 0
        return total

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the run against other trainings and its removal.

        Raises:
            GrimmgenError: another process has locked it.
        """
        files.make_directory(self._lock_path.parent)
        with files.locked(self._lock_path, f"the run {self.name}"):
            files.sweep(self.path)
            yield

    def remove(self) -> None:
        """Remove the directory with all its files.

        Raises:
            GrimmgenError: the run is being trained, or cannot be removed.
        """
        with _changing(self.path.parent):
            with self.locked():
                doomed = self._hide()
            with files.wrap_os_errors(f"cannot remove {doomed}"):
                shutil.rmtree(doomed)

    def _hide(self) -> Path:
        """Rename the directory, so that no incomplete run is ever visible, and return its path."""
        doomed = self.path.with_name(f".removed-{secrets.token_hex(4)}")
        with files.wrap_os_errors(f"cannot remove {self.path}"):
            return self.path.rename(doomed)

    def _hide_if_abandoned(self) -> bool:
        """Hide a run whose training has ended without a checkpoint; returns whether it was one."""
        # Without a log its training may be about to begin.
        if self.path.is_symlink() or not self.log_path.is_file():
            return False
        try:
            with self.locked():
                return not self.has_checkpoint and bool(self._hide())
        except GrimmgenError:
            return False

    @property
    def _lock_path(self) -> Path:
        # Not in the run's own directory: Windows cannot rename a directory with an open file.
        return self.path.parent / ".locks" / self.name

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
    base: TrainedModel | None = None,
    numbered: bool = False,
    reason: str = "",
    precision: Mapping[str, Any] | None = None,
    teachers: Sequence[TrainedModel] = (),
    write_targets: Callable[[Path], None] | None = None,
) -> Run:
    """Create a new run; one of the same name whose training has ended without a checkpoint is replaced.

    Args:
        name: of the run; None generates one.
        configuration: the options.
        corpus: the corpus.
        split: documents of the training, validation and test sets.
        command: the command line.
        versions: versions of the programs, by name.
        base: the model that training starts from, of which the run keeps a copy; None starts from random weights.
        numbered: whether a name that is taken gets a number: `fox-2` after `fox`.
        reason: why these options were chosen; empty if the user or a preset chose them.
        precision: the choice of `--precision auto`; see `grimmgen.network.precision`.
        teachers: the models that the run is distilled from.
        write_targets: writes the samples of their predictions to a file; None is a run without teachers.

    Raises:
        UsageError: the name is invalid, or taken.
    """
    directory = paths.runs_directory()
    if name is not None:
        check_name(name)
    with _changing(directory):
        first = name = name or _generate_name(directory)
        number = 1
        while name == PRETRAINED or (
            os.path.lexists(directory / name) and not Run(directory / name)._hide_if_abandoned()
        ):
            if name == PRETRAINED and not numbered:
                raise UsageError(f"{name} is the bundled model", "give another --run")
            if not numbered:
                raise UsageError(
                    f"the run {name} exists already", "give another --run, or resume it with --resume"
                )
            number += 1
            name = f"{first}-{number}"
            check_name(name)
        run = Run(directory / name)
        # Written under another name first, so that no run is ever visible without its run.json.
        draft = Run(directory / f".draft-{secrets.token_hex(4)}")
        files.make_directory(draft.path)
        try:
            started_from: dict[str, Any] = {} if base is None else {"base": _keep_base(draft, base)}
            if write_targets is not None:
                write_targets(draft.targets_path)
                started_from["teachers"] = [teacher.identity for teacher in teachers]
            files.write_json(
                draft.path / "run.json",
                {
                    "format": _format_of(bool(teachers)),
                    "name": name,
                    "order": _next_order(directory),
                    "created": datetime.now(UTC).isoformat(timespec="seconds"),
                    "command": command,
                    "versions": dict(versions),
                    "configuration": configuration.to_json(),
                    "precision": precision,
                    "corpus": {
                        "name": corpus.name,
                        "source": corpus.source,
                        "sha256": split.sha256,
                        "split": split.to_json(),
                    },
                    **({"reason": reason} if reason else {}),
                    **started_from,
                },
            )
            with files.wrap_os_errors(f"cannot create the run {run.path}"):
                draft.path.rename(run.path)
        except BaseException:
            shutil.rmtree(draft.path, ignore_errors=True)
            raise
    return run


def _format_of(with_teachers: bool) -> int:
    """The format of run.json, which is the oldest that will do."""
    return _FORMAT if with_teachers else 2


def _keep_base(run: Run, base: TrainedModel) -> dict[str, str]:
    """Copy the model that a run starts from into its directory; returns its description in run.json."""
    content = replace(base.checkpoint, progress=None, training_tensors={}, mixture=None).to_bytes()
    files.write_atomically(run.base_path, content)
    return {**base.identity, "copy_sha256": files.sha256(content)}


def make_latest(
    run: Run,
    configuration: Configuration,
    source: str | Sequence[str] | None = None,
    versions: Mapping[str, str] | None = None,
) -> None:
    """Record that a run is resumed: it becomes the latest, with this configuration and these versions.

    Its corpus may have moved to `source`.
    """
    directory = run.path.parent
    with _changing(directory):
        info = run.info()
        value = {**info, "format": _format_of("teachers" in info), "order": _next_order(directory)}
        value |= {
            "versions": dict(versions or value.get("versions", {})),
            "configuration": configuration.to_json(),
        }
        if source is not None:
            value["corpus"] = {**value["corpus"], "source": source}
        files.write_json(run.path / "run.json", value)


def run_sha256(info: Mapping[str, Any]) -> str:
    """Hash what never changes in a run.json: the name, the time of creation, the hash of the stories."""
    parts = info.get("name"), info.get("created"), info["corpus"].get("sha256")
    return files.sha256(json.dumps(parts).encode())


def find(name: str | None = None) -> Run:
    """Return the run of a name; for None the latest run, or the last one that was begun if none has a checkpoint.

    Raises:
        GrimmgenError: there is no run at all.
        UsageError: there is no run of that name.
    """
    if name is None or name == LATEST:
        runs = all_runs()
        if not runs:
            raise GrimmgenError("there is no run yet", "train one with `grimmgen train`")
        return _latest(runs) or runs[-1]
    check_name(name)
    run = Run(paths.runs_directory() / name)
    with files.wrap_os_errors(f"cannot read {run.path}"):
        link, exists = run.path.is_symlink(), run.path.is_dir()
    if link:
        raise UsageError(f"the run {name} is a link", "give the run that it points to")
    if not exists and name == PRETRAINED:
        raise UsageError(
            f"{name} is the bundled model, not a run", f"train one from it with `grimmgen train --from {name}`"
        )
    if not exists:
        with contextlib.suppress(OSError), files.open_regular(Path(name)) as file:
            kind = file_kinds.describe(file.read(file_kinds.HEAD)) or "a file"
            remedy = "give a run, or the path of a .safetensors or .html file"
            raise UsageError(f"{name} is {kind}, not a run or a checkpoint", remedy)
        names = [other.name for other in all_runs()]
        near = did_you_mean(name, [*names, PRETRAINED, *([LATEST] if names else [])])
        remedy = f"the latest are: {', '.join(names[-5:])}" if names else "train one with `grimmgen train`"
        raise UsageError(f"there is no run {name}{near}", remedy)
    return run


@dataclass(frozen=True)
class TrainedModel:
    """A trained model. A command resolves what the user typed to one of these once, and passes it on.

    Attributes:
        name: of the run or the bundled model, or the path of the checkpoint as it was typed.
        checkpoint: weights and vocabulary.
        run: the run; None for the bundled model and for a checkpoint file.
        info: the content of its run.json when it was loaded; the run may be resumed, or removed, in the meantime. That
            of the bundled model has what `split` needs, and that of a file is empty.
        moved_to: where the corpus is now; empty if it is where it was.
    """

    name: str
    checkpoint: Checkpoint
    run: Run | None = None
    info: Mapping[str, Any] = field(default_factory=dict)
    moved_to: tuple[str, ...] = ()

    @property
    def identity(self) -> dict[str, str]:
        """The name of the model, and the hash of the file it was read from."""
        return {"name": self.name, "sha256": self.checkpoint.sha256}

    @property
    def has_split(self) -> bool:
        """Whether the documents of the training, validation and test sets are known."""
        return self.run is not None or bool(self.info)

    def split(self) -> Split:
        """Return the documents of each set, of a model that `has_split`; see `Run.split`."""
        try:
            return _split(self.info, self.moved_to)
        except GrimmgenError as error:
            if self.run is not None or self.moved_to:
                raise
            remedy = "run `grimmgen fetch --stories all`, or give their directory with --corpus"
            raise GrimmgenError(f"the bundled model does not include its tales ({error.what})", remedy) from None


def load_model(run_or_path: str | Path | None = None, moved_to: Sequence[str] | None = None) -> TrainedModel:
    """Load the model of a run, of the latest run (None), or of a checkpoint file; without any run the bundled one.

    Args:
        run_or_path: the name, or the path as a `Path` or with a slash or the suffix of a checkpoint.
        moved_to: where the corpus of the run is now; None or empty if it is where it was.

    Raises:
        GrimmgenError: there is no such run or file, or it cannot be read.
        IntegrityError: the checkpoint is damaged.
    """
    name = None if run_or_path is None else str(run_or_path)
    if name is not None and (isinstance(run_or_path, Path) or name.endswith(CHECKPOINT_SUFFIXES) or "/" in name):
        if "\0" in name:
            raise UsageError(f"{name!r} cannot be a path", "remove the NUL character")
        try:
            path = Path(name).expanduser()
        except RuntimeError:
            raise UsageError(f"{name!r}: there is no such user", "check the path") from None
        return TrainedModel(name, Checkpoint.read(path))
    run = None
    if name is None or name == LATEST:
        run = _latest(all_runs())
    elif not is_pretrained(name):
        run = find(name)
    return _load_pretrained(moved_to or ()) if run is None else run.load(moved_to or ())


def is_pretrained(name: str | None) -> bool:
    """Whether this is the name of the bundled model, and of no run."""
    return name == PRETRAINED and not os.path.lexists(paths.runs_directory() / name)


def _load_pretrained(moved_to: Sequence[str]) -> TrainedModel:
    try:
        checkpoint = Checkpoint.read(PRETRAINED_PATH)
    except GrimmgenError as error:
        raise IntegrityError(
            f"the bundled model is missing or damaged ({error.what})", "reinstall grimmgen"
        ) from None
    info = {
        "versions": checkpoint.provenance.get("versions"),
        "configuration": checkpoint.configuration.to_json(),
        "corpus": {"source": "grimm", "split": checkpoint.provenance.get("split")},
    }
    return TrainedModel(PRETRAINED, checkpoint, info=info, moved_to=tuple(moved_to))


def newer_without_checkpoint(run: Run | None) -> Run | None:
    """Return the last run that was begun, if it is not this one and has no checkpoint."""
    last = all_runs()[-1:]
    return next((other for other in last if other != run and not other.has_checkpoint), None)


def all_runs() -> list[Run]:
    """Return all runs, the latest last."""
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


def _latest(runs: Sequence[Run]) -> Run | None:
    return next((run for run in reversed(runs) if run.has_checkpoint), None)


def check_name(name: str) -> None:
    """Reject a name that is a path, or not safe in a shell, a terminal or any file system.

    Raises:
        UsageError: the name is invalid.
    """
    if not _NAME.fullmatch(name) or _RESERVED.fullmatch(name) or name == LATEST:
        raise UsageError(
            f"{name[:80]!r} cannot be the name of a run",
            "use at most 64 letters, digits, dots, dashes and underscores, starting with a letter or digit",
        )


@contextlib.contextmanager
def _changing(directory: Path) -> Iterator[None]:
    """Lock the registry, and remove what processes that were killed have left in it."""
    files.make_directory(directory)
    with files.locked(directory / ".lock", "the registry", timeout=30.0):
        for stale in (*directory.glob(".draft-*"), *directory.glob(".removed-*")):
            shutil.rmtree(stale, ignore_errors=True)
        yield


def _split(info: Mapping[str, Any], moved_to: Sequence[str]) -> Split:
    from grimmgen.text.split import reopen

    configuration = Configuration.from_json(info.get("configuration"), written_by(info.get("versions")))
    return reopen(info["corpus"], configuration, moved_to)[1]


def _order(run: Run) -> int:
    # Not the modification time: clocks jump, and a copy is newer than the original.
    try:
        order = _integer(run.info().get("order"))
    except GrimmgenError:
        return -1
    # Python cannot write integers of thousands of digits.
    return order if order < 1 << 53 else -1


def _next_order(directory: Path) -> int:
    orders = [_order(Run(path)) for path in directory.iterdir() if _NAME.fullmatch(path.name)]
    return max(orders, default=0) + 1


def _generate_name(directory: Path) -> str:
    while True:
        name = f"{secrets.choice(_ADJECTIVES)}-{secrets.choice(_NOUNS)}"
        if (directory / name).exists():
            name += f"-{secrets.randbelow(1000)}"
        if not (directory / name).exists():
            return name


def _integer(value: object) -> int:
    return value if type(value) is int else 0
