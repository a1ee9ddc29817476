"""The events of a training as scalars for TensorBoard. The only importer of tensorboard."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, NamedTuple

from grimmgen.errors import GrimmgenError, UsageError
from grimmgen.io import files
from grimmgen.runs.events import Evaluated, Event, Started, Stepped, event_to_json
from grimmgen.runs.registry import Run

# Seconds of training between two updates that are logged: an update may take less than logging it.
_INTERVAL = 0.1
_VERSION = "brain.Event:2"


class _Library(NamedTuple):
    """What is used of tensorboard."""

    Event: Any
    SessionLog: Any
    Summary: Any
    RecordWriter: Any


def require() -> _Library:
    """Import what writes the log.

    Raises:
        GrimmgenError: TensorBoard is not installed.
    """
    try:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.record_writer import RecordWriter
    except ImportError:
        raise GrimmgenError(
            "--log-to tensorboard needs TensorBoard, which is not installed", "pip install 'grimmgen[tensorboard]'"
        ) from None
    return _Library(Event, SessionLog, Summary, RecordWriter)


def parse_directory(log_to: str) -> Path | None:
    """The directory that `--log-to` names; None for the run's own.

    Raises:
        UsageError: it names another kind of log.
    """
    kind, colon, directory = log_to.partition(":")
    if kind != "tensorboard" or (colon and not directory) or "\0" in directory:
        raise UsageError(f"--log-to {log_to[:80]!r} is not known", "give tensorboard or tensorboard:DIR")
    try:
        return Path(directory).expanduser() if directory else None
    except RuntimeError:
        raise UsageError(f"--log-to {log_to!r}: there is no such user", "check the path") from None


def prepare(log_to: str | None) -> Path | None:
    """Check before a run is created that its log can be written; returns what `parse_directory` does.

    Raises:
        UsageError: it names another kind of log.
        GrimmgenError: TensorBoard is not installed, or the directory cannot be created.
    """
    if log_to is None:
        return None
    directory = parse_directory(log_to)
    require()
    if directory is not None:
        files.make_directory(directory)
    return directory


def directory_of(run: Run, parent: Path | None) -> Path:
    """The directory of a run's log: of its name in the parent, or in that of the run."""
    return parent / run.name if parent else run.path / "tensorboard"


class TensorBoardLog:
    """Writes the numbers of `Stepped` and `Evaluated` events, over the updates of the run.

    Their tags are the names of the event and of its attribute: `stepped/perplexity`, `stepped/rate`,
    `stepped/speed`, `evaluated/perplexity`, and so on. Updates are logged at most every 0.1 s of training.

    Args:
        directory: of the run's log; created if it does not exist, continued if it does.

    Raises:
        GrimmgenError: TensorBoard is not installed, or the directory cannot be written.
    """

    def __init__(self, directory: Path) -> None:
        self._library = require()
        # TensorBoard reads all files with such a name in their order.
        self._path = directory / f"events.out.tfevents.{time.time_ns()}"
        self._logged = -_INTERVAL
        files.make_directory(directory)
        with self._errors():
            self._file: BinaryIO = self._path.open("xb")
        self._append(file_version=_VERSION)

    def write(self, event: Event) -> None:
        """Log an event.

        Raises:
            GrimmgenError: the disk is full or failing.
        """
        match event:
            case Started():
                # Hides what an interrupted training has logged after the update that it resumes from.
                log = self._library.SessionLog
                self._append(step=event.step + 1, session_log=log(status=log.START))
            case Evaluated():
                self._append_numbers(event)
            case Stepped() if event.seconds >= self._logged + _INTERVAL:
                self._logged = event.seconds
                self._append_numbers(event)
            case _:
                pass

    def _append_numbers(self, event: Stepped | Evaluated) -> None:
        summary = self._library.Summary
        kind = event_to_json(event)["event"]
        numbers = {
            f"{kind}/{name}": value
            for name, value in dataclasses.asdict(event).items()
            if isinstance(value, float) and name != "seconds"
        }
        values = [summary.Value(tag=tag, simple_value=value) for tag, value in numbers.items()]
        self._append(step=event.step, summary=summary(value=values))

    def _append(self, **fields: Any) -> None:
        content = self._library.Event(wall_time=time.time(), **fields).SerializeToString()
        with self._errors():
            self._library.RecordWriter(self._file).write(content)
            self._file.flush()

    def _errors(self) -> Any:
        return files.wrap_os_errors(f"cannot write {self._path}")

    def __enter__(self) -> TensorBoardLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._errors():
            self._file.close()
