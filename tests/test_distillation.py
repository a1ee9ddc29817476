"""Training towards the predictions of other models: `train --distil`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import grimmgen
from grimmgen.configuration import Configuration, configure
from grimmgen.errors import GrimmgenError, IntegrityError, UsageError
from grimmgen.io import paths
from grimmgen.network.model import LanguageModel
from grimmgen.runs import registry
from grimmgen.runs.events import Started, Stepped
from grimmgen.runs.registry import TrainedModel
from grimmgen.text import id_cache
from grimmgen.text.batches import RaggedIds, epoch, evaluation_windows
from grimmgen.text.corpus import open_corpus
from grimmgen.text.split import split_by_hash
from grimmgen.text.vocabulary import END
from grimmgen.training import distillation
from grimmgen.training.distillation import SHARE, SampledTargets, with_teachers
from grimmgen.training.distributed import SINGLE_PROCESS, ProcessGroup
from grimmgen.training.session import Training
from grimmgen.training.text import TrainingText, prepare_text
from tests.builders import TEXTS, TINY, weights_of
from tests.program import Ran

CPU = torch.device("cpu")


@pytest.fixture
def tales(tmp_path: Path) -> Path:
    directory = tmp_path / "tales"
    directory.mkdir()
    for number, text in enumerate(TEXTS):
        (directory / f"{number}.txt").write_text(text, encoding="utf-8")
    return directory


def options_of(**options: Any) -> Configuration:
    chosen: dict[str, Any] = {"hidden": 8, "batch_size": 4, "unroll": 10, "min_count": 2, "epochs": 2}
    return Configuration(**{**chosen, "learning_rate": 0.01, **options})


def train_teachers(tales: Path, **options: Any) -> list[TrainedModel]:
    found = []
    for seed in (1, 2):
        configuration = options_of(random_seed=seed, **options)
        training = Training.begin(open_corpus(str(tales)), configuration, run=f"teacher-{seed}")
        list(training.events())
        found.append(training.run.load())
    return found


@pytest.fixture
def teachers(tales: Path, home: Path) -> list[TrainedModel]:  # noqa: ARG001 - where the runs are
    return train_teachers(tales)


def text_of(tales: Path, **options: Any) -> TrainingText:
    split = split_by_hash(open_corpus(str(tales)))
    return prepare_text(options_of(**options), split, CPU, SINGLE_PROCESS)


def samples_of(targets: SampledTargets) -> NDArray[np.int64]:
    return targets.samples.ids[:].astype(np.int64).reshape(len(targets.samples.lengths), -1)


# --- the samples ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("phases", [False, True])
@pytest.mark.usefixtures("home")
def test_samples_are_those_of_the_mean_of_the_teachers(
    tales: Path, monkeypatch: pytest.MonkeyPatch, phases: bool
) -> None:
    teachers = train_teachers(tales, phases=phases)
    monkeypatch.setattr(distillation, "_SAMPLES", 3000)
    text = text_of(tales, phases=phases)
    sampled = samples_of(SampledTargets.draw(teachers, text, CPU, 0))
    assert sampled.shape == (3000, len(text.training.ids))
    # The predictions of each document, one by one, from a zero state.
    for begin, length in [(text.training.begins[-1, n], text.training.lengths[-1, n]) for n in (0, 7)]:
        expected = np.zeros((length, len(text.vocabulary)))
        [window] = evaluation_windows([text.training.ids[begin : begin + length]], 1 << 20)
        for teacher in teachers:
            model = LanguageModel(teacher.checkpoint.configuration, len(text.vocabulary))
            model.load_weights(teacher.checkpoint.weights)
            inputs = model.inputs(window)
            logits, _ = model.logits(inputs.ids, model.zero_state(1), inputs.resets)
            expected += logits[:-1, 0].softmax(dim=-1).numpy() / len(teachers)
        columns = sampled[:, begin : begin + length]
        counted = np.stack([np.bincount(column, minlength=len(text.vocabulary)) for column in columns.T]) / 3000
        # Five standard deviations of a share.
        assert np.all(np.abs(counted - expected) < 5 * np.sqrt(expected * (1 - expected) / 3000) + 1e-3)


def test_targets_of_an_epoch_are_half_samples(tales: Path, teachers: list[TrainedModel]) -> None:
    text = text_of(tales)
    targets, ids = SampledTargets.draw(teachers, text, CPU, 0), text.training.ids
    sampled = samples_of(targets)
    first, again, later = (targets.of_epoch(ids, 7, number) for number in (3, 3, 4))
    assert np.array_equal(first[:], again[:])
    assert not np.array_equal(first[:], later[:])
    kept = first[:] == ids[:]
    assert np.array_equal(first[:][~kept], sampled[3][~kept])
    # A sample may be the token of the text.
    same = float(np.mean(sampled[3] == ids[:]))
    assert np.mean(kept) == pytest.approx(1 - SHARE + SHARE * same, abs=0.05)
    assert np.array_equal(first[5:9], first[:][5:9])
    assert len(first) == len(ids)


def test_windows_have_these_targets_and_the_inputs_of_the_text() -> None:
    ids = np.arange(10, 30, dtype=np.uint16)
    documents = RaggedIds.of_lengths(ids, np.array([[8, 0, 12]]))
    plain, given = (epoch(documents, 2, 4, 0, 0, targets=targets) for targets in (None, ids + 100))
    for one, other in zip(plain, given, strict=True):
        assert np.array_equal(one.inputs, other.inputs)
        assert np.array_equal(one.starts, other.starts)
        expected = np.where(one.targets >= 10, one.targets + 100, one.targets)
        assert np.array_equal(other.targets, expected)
        assert END not in expected[one.targets >= 10]


def test_large_training_set_has_fewer_samples(
    tales: Path, teachers: list[TrainedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = text_of(tales)
    monkeypatch.setattr(distillation, "_LARGEST", 3 * len(text.training.ids))
    targets = SampledTargets.draw(teachers, text, CPU, 0)
    assert len(samples_of(targets)) == 3
    again = [targets.of_epoch(text.training.ids, 0, number) for number in (1, 4)]
    assert np.array_equal(samples_of(targets)[1], samples_of(targets)[4 % 3])
    assert len(again[0]) == len(again[1])


def test_every_process_has_the_samples_of_the_first(tales: Path, teachers: list[TrainedModel]) -> None:
    text = text_of(tales)
    drawn = SampledTargets.draw(teachers, text, CPU, 0)
    sent: list[Any] = []

    class First(ProcessGroup):
        rank, size = 0, 2

        def broadcast(self, make: Callable[[], Any]) -> Any:
            sent.append(make())
            return sent[-1]

        def copy(self, tensors: Any) -> None:
            sent.extend(tensor.clone() for tensor in tensors)

    class Second(ProcessGroup):
        rank, size = 1, 2
        first = False

        def broadcast(self, make: Callable[[], Any]) -> Any:  # noqa: ARG002
            return sent[0]

        def copy(self, tensors: Any) -> None:
            for tensor, of_first in zip(tensors, sent[1:], strict=True):
                tensor.copy_(of_first)

    def fail() -> SampledTargets:
        raise AssertionError

    first = SampledTargets.shared(lambda: drawn, text, First())
    second = SampledTargets.shared(fail, text, Second())
    assert np.array_equal(samples_of(first), samples_of(drawn))
    assert np.array_equal(samples_of(second), samples_of(drawn))


# --- the options ---------------------------------------------------------------------------------------------


def test_options_with_teachers() -> None:
    strong = configure("strong", {})
    made = with_teachers(strong, ())
    assert 0 < made.dropout < strong.dropout
    assert made.epochs > strong.epochs
    assert with_teachers(strong, ("dropout", "weight_drop", "epochs")) == strong
    # A training to the end of its budget, and one whose rate does not depend on its epochs.
    timed, tutorial = configure("strong", {"budget": 60.0}), Configuration()
    assert with_teachers(timed, ()).epochs == timed.epochs
    assert with_teachers(tutorial, ()).epochs == tutorial.epochs


# --- training ------------------------------------------------------------------------------------------------


def begin(tales: Path, teachers: list[TrainedModel], **options: Any) -> Training:
    return Training.begin(open_corpus(str(tales)), options_of(**options), teachers=teachers)


def test_run_names_its_teachers_and_differs_from_one_without(tales: Path, teachers: list[TrainedModel]) -> None:
    training = begin(tales, teachers)
    started, *_ = training.events()
    assert isinstance(started, Started)
    assert started.teachers == ("teacher-1", "teacher-2")
    identities = [teacher.identity for teacher in teachers]
    assert training.run.info()["teachers"] == identities
    # Earlier versions would resume it without its teachers.
    assert training.run.info()["format"] == 3
    assert training.run.checkpoint().provenance["teachers"] == identities
    alone = begin(tales, [])
    list(alone.events())
    assert not alone.run.targets_path.exists()
    assert weights_of(training.run) != weights_of(alone.run)


@pytest.mark.parametrize("saved", [True, False])
def test_resume_is_bit_equal_without_the_teachers(tales: Path, teachers: list[TrainedModel], saved: bool) -> None:
    whole = begin(tales, teachers)
    list(whole.events())
    first = begin(tales, teachers)
    for event in first.events():
        if isinstance(event, Stepped) and event.step == 3:
            first.stop()
    for teacher in teachers:
        assert teacher.run
        teacher.run.remove()
    if not saved:
        for path in (first.run.best_path, first.run.last_path, first.run.previous_path):
            path.unlink(missing_ok=True)
    list(Training.resume(first.run).events())
    assert weights_of(first.run) == weights_of(whole.run)


@pytest.mark.parametrize("damage", ["missing", "damaged", "of another text"])
def test_damaged_samples_are_refused(tales: Path, teachers: list[TrainedModel], damage: str) -> None:
    run = begin(tales, teachers).run
    if damage == "missing":
        run.targets_path.unlink()
    elif damage == "damaged":
        content = bytearray(run.targets_path.read_bytes())
        content[100] ^= 1
        run.targets_path.write_bytes(content)
    else:
        text = text_of(tales)
        other = RaggedIds.of_lengths(np.zeros(10, np.uint16), np.array([[5], [5]]))
        SampledTargets(text.vocabulary, other).write(run.targets_path)
    with pytest.raises(IntegrityError, match=r"targets\.ids"):
        list(Training.resume(run).events())


def test_failing_write_of_the_samples_leaves_no_run(
    tales: Path, teachers: list[TrainedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise GrimmgenError("cannot write targets.ids: no space left")

    monkeypatch.setattr(id_cache, "write", full)
    with pytest.raises(GrimmgenError, match="no space"):
        begin(tales, teachers)
    assert [run.name for run in registry.all_runs()] == ["teacher-1", "teacher-2"]
    assert not list(paths.runs_directory().glob(".draft-*"))


def test_teacher_of_other_tokens_is_refused(tales: Path, teachers: list[TrainedModel]) -> None:
    with pytest.raises(UsageError, match="teacher-1 has other tokens"):
        begin(tales, teachers, tokens="char")
    assert [run.name for run in registry.all_runs()] == ["teacher-1", "teacher-2"]


# --- the command and the function ------------------------------------------------------------------------------


def test_command_takes_the_text_options_of_its_teachers(
    tales: Path, teachers: list[TrainedModel], run: Callable[..., Ran]
) -> None:
    assert teachers
    small = ["--preset", "tutorial", "--hidden", "8", "--batch-size", "4", "--epochs", "1", "--run", "student"]
    ran = run("train", str(tales), "--distil", "teacher-1", "--distil", "teacher-2", *small)
    assert ran.code == 0
    assert "distilled from teacher-1, teacher-2" in ran.err
    assert registry.find("student").configuration.min_count == 2
    shown = run("runs", "show", "student").out
    assert "teacher-1, teacher-2" in shown
    ran = run("train", "--resume", "--run", "student", "--distil", "teacher-1")
    assert (ran.code, ran.err.count("\n")) == (2, 1)
    assert "--distil cannot be given with --resume" in ran.err
    ran = run("train", str(tales), "--distil", "no-such-run", *small)
    assert ran.code == 2
    assert "no-such-run" in ran.err


def test_function_takes_teachers(home: Path) -> None:  # noqa: ARG001 - where the runs are
    teacher = grimmgen.fit(TEXTS, **TINY)
    named: list[Any] = [teacher, teacher.name, [teacher, teacher.name]]
    for distil in named:
        options = {name: value for name, value in TINY.items() if name != "min_count"}
        student = grimmgen.fit(TEXTS, distil=distil, **options)
        assert student.checkpoint.configuration.min_count == 2
        assert student.checkpoint.provenance["teachers"]
    with pytest.raises(UsageError, match="distil cannot be given with resume"):
        grimmgen.fit(run=student.name, resume=True, distil=teacher)
