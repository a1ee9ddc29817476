"""Training that starts from the weights of another model: `train --from`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import grimmgen
from grimmgen.configuration import Configuration, base_options
from grimmgen.errors import GrimmgenError, IntegrityError, UsageError
from grimmgen.io import files
from grimmgen.network.model import LanguageModel
from grimmgen.runs import registry
from grimmgen.runs.events import Started, Stepped
from grimmgen.runs.registry import Run
from grimmgen.text.corpus import open_corpus
from grimmgen.text.tokenizers import build_vocabulary, vocabulary_from_json
from grimmgen.text.vocabulary import UNKNOWN
from grimmgen.training.distributed import ProcessGroup
from grimmgen.training.session import Training, _vocabulary_of
from tests.builders import NETWORKS, random_tensors, weights_of
from tests.program import Ran

OLD = "the king and the thin hen; the king is the end.\n" * 3
NEW = "Der König: and the end!\n" * 4


@pytest.fixture
def letters(tmp_path: Path) -> Path:
    path = tmp_path / "letters.txt"
    path.write_text("dear hen, the king and i are at the end of the forest. write soon!\n" * 40, encoding="utf-8")
    return path


# --- the vocabulary ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokens", ["char", "bigram", "ngram:3", "word", "bpe:60"])
@pytest.mark.parametrize("lower", [True, False])
def test_extended_vocabulary_keeps_and_adds_tokens(tokens: str, lower: bool) -> None:
    options = Configuration(tokens=tokens, min_count=3)
    old = build_vocabulary([OLD], options)
    new = build_vocabulary([NEW], dataclasses.replace(options, lower=lower), old)
    alone = build_vocabulary([NEW], dataclasses.replace(options, lower=lower))
    assert {*old.texts} <= {*new.texts}
    if not tokens.startswith("bpe"):
        assert {*alone.texts} <= {*new.texts}
    assert {*new.alphabet} == {*old.alphabet, *alone.alphabet}
    assert new.unknown_share <= max(old.unknown_share, alone.unknown_share)
    assert vocabulary_from_json(new.to_json()) == new
    own, theirs = new.shared_ids(old)
    assert [new.token(i) for i in own] == [old.token(i) for i in theirs]
    assert len(own) == len(old)


@pytest.mark.parametrize("tokens", ["char", "bigram", "ngram:3", "word"])
def test_extended_vocabulary_counts_both_texts(tokens: str) -> None:
    options = Configuration(tokens=tokens, min_count=1)
    extended = build_vocabulary([NEW], options, build_vocabulary([OLD], options))
    assert extended == build_vocabulary([OLD, NEW], options)


def test_new_character_takes_the_place_of_the_last_pair() -> None:
    old = build_vocabulary([OLD], Configuration(tokens="bpe:24", min_count=2))
    assert len(old) == 24
    new = build_vocabulary([OLD + "ö"], Configuration(tokens="bpe:24", min_count=2), old)
    assert len(new) == 24
    assert {*old.texts} - {*new.texts} == {old.texts[-1]}
    assert {*new.texts} - {*old.texts} == {"ö"}


def test_too_many_new_characters_are_refused() -> None:
    old = build_vocabulary([OLD], Configuration(tokens="bpe:24", min_count=2))
    with pytest.raises(UsageError, match="too small"):
        old.extended(["абвгдежзиклмн"], old.normalisation, phases=False)


# --- the weights ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("network", ["lstm1", "lstm2-embedded", "gru1-tied", "mogrifier1-tied"])
def test_model_predicts_shared_tokens_as_its_base_does(network: str) -> None:
    configuration = Configuration(hidden=3, min_count=2, **NETWORKS[network])
    old = build_vocabulary([OLD], configuration)
    new = build_vocabulary([NEW], configuration, old)
    base, model = LanguageModel(configuration, len(old)), LanguageModel(configuration, len(new))
    base.load_weights(random_tensors({n: tuple(w.shape) for n, w in base.named_parameters()}))
    model.initialise()
    drawn = model.weights()["output.bias"]
    own, theirs = new.shared_ids(old)
    model.load_base(base.weights(), own, theirs)
    ids = torch.from_numpy(old.encode(OLD).astype(np.int64))[:20, None]
    assert UNKNOWN not in ids
    expected = base.logits(ids, base.zero_state(1))[0][:, :, theirs]
    renamed = dict(zip(theirs, own, strict=True))
    logits, _ = model.logits(ids.apply_(renamed.__getitem__), model.zero_state(1))
    torch.testing.assert_close(logits[:, :, own], expected)
    added = sorted({*range(len(new))} - {*own})
    assert added
    assert np.array_equal(model.weights()["output.bias"][added], drawn[added])


# --- the options ---------------------------------------------------------------------------------------------


def test_architecture_and_reading_are_those_of_the_base() -> None:
    base = Configuration(cell="gru", hidden=7, tokens="char", lower=False, dropout_mode="output", dropout=0.4)
    values = base_options(base, {"hidden": 128, "dropout": 0.1, "input_dropout": 0.2}, {"dropout"})
    made = Configuration(**values)
    assert (made.cell, made.hidden, made.tokens, made.lower, made.dropout_mode) == (
        "gru",
        7,
        "char",
        False,
        "output",
    )
    assert (made.dropout, made.input_dropout) == (0.1, 0.0)
    assert Configuration(**base_options(base, {"lower": True}, {"lower"})).lower


# --- training ------------------------------------------------------------------------------------------------


def begin(letters: Path, source: Run, **options: Any) -> Training:
    model = source.load()
    chosen: dict[str, Any] = {"epochs": 2, "batch_size": 4, "unroll": 10, **options}
    configuration = Configuration(**base_options(model.checkpoint.configuration, chosen, chosen))
    return Training.begin(open_corpus(str(letters)), configuration, base=model)


def test_run_names_its_base_and_starts_with_its_weights(letters: Path, trained: Run) -> None:
    training = begin(letters, trained, learning_rate=1e-12)
    events = list(training.events())
    started = events[0]
    assert isinstance(started, Started)
    source = trained.checkpoint()
    assert (started.base, started.shared) == ("sly-fox", len(source.vocabulary))
    described = training.run.info()["base"]
    assert (described["name"], described["sha256"]) == ("sly-fox", source.sha256)
    assert training.run.checkpoint().provenance["base"] == described
    # A rate of next to nothing: the weights are still those of the base.
    weights = training.run.checkpoint().weights
    assert np.allclose(
        weights["layers.0.recurrent_weight"], source.weights["layers.0.recurrent_weight"], atol=1e-6
    )


@pytest.mark.parametrize("saved", [True, False])
def test_resume_is_bit_equal_without_the_source(letters: Path, trained: Run, saved: bool) -> None:
    whole = begin(letters, trained)
    list(whole.events())
    first = begin(letters, trained)
    for event in first.events():
        if isinstance(event, Stepped) and event.step == 3:
            first.stop()
    trained.remove()
    if not saved:
        for path in (first.run.best_path, first.run.last_path, first.run.previous_path):
            path.unlink(missing_ok=True)
    list(Training.resume(first.run).events())
    assert weights_of(first.run) == weights_of(whole.run)


@pytest.mark.parametrize("damage", ["missing", "another model", "described wrongly"])
def test_damaged_copy_of_the_base_is_refused(letters: Path, trained: Run, damage: str) -> None:
    run = begin(letters, trained).run
    if damage == "missing":
        run.base_path.unlink()
    elif damage == "another model":
        run.base_path.write_bytes(trained.last_path.read_bytes())
    else:
        path = run.path / "run.json"
        path.write_text(path.read_text("utf-8").replace("copy_sha256", "copied"), encoding="utf-8")
    with pytest.raises(IntegrityError, match=r"base\.safetensors"):
        Training.resume(run)


def test_failing_copy_of_the_base_leaves_no_run(
    letters: Path, trained: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = files.write_atomically

    def full(path: Path, content: bytes) -> None:
        if path.name == "base.safetensors":
            raise GrimmgenError(f"cannot write {path}: no space left")
        write(path, content)

    monkeypatch.setattr(files, "write_atomically", full)
    with pytest.raises(GrimmgenError, match="no space"):
        begin(letters, trained)
    assert [path.name for path in trained.path.parent.iterdir() if path.name[0] != "."] == [trained.name]
    assert not list(trained.path.parent.glob(".draft-*"))


def test_every_process_has_the_vocabulary_of_the_base(trained: Run) -> None:
    class Second(ProcessGroup):
        rank, size = 1, 2

        def broadcast(self, make: Callable[[], Any]) -> Any:  # noqa: ARG002
            return sent

    checkpoint = trained.checkpoint()
    sent: object = checkpoint.vocabulary.to_json()
    assert _vocabulary_of(None, Second()) == checkpoint.vocabulary
    sent = None
    assert _vocabulary_of(None, Second()) is None


# --- the command and the function ------------------------------------------------------------------------------


def test_command_starts_from_a_run_or_a_file(letters: Path, trained: Run, run: Callable[..., Ran]) -> None:
    ran = run("train", str(letters), "--from", "sly-fox", "--epochs", "1", "--batch-size", "4", "--run", "owl")
    assert ran.code == 0
    size = len(trained.checkpoint().vocabulary)
    assert f"from sly-fox, which has {size} of the" in ran.err
    assert ["from", "sly-fox"] in [line.split() for line in run("runs", "show", "owl").out.splitlines()]
    ran = run(
        "train",
        str(letters),
        "--from",
        str(trained.best_path),
        "--epochs",
        "1",
        "--batch-size",
        "4",
        "--run",
        "cat",
    )
    assert ran.code == 0
    assert registry.find("cat").checkpoint().configuration.hidden == 8


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--hidden", "9"], "--hidden 9 contradicts --from, whose model has --hidden 8"),
        (["--tokens", "char"], "--tokens bigram"),
        (["--resume"], "--from cannot be given with --resume"),
    ],
)
def test_contradiction_is_refused(
    letters: Path, trained: Run, run: Callable[..., Ran], arguments: list[str], named: str
) -> None:
    corpus = [] if "--resume" in arguments else [str(letters)]
    ran = run("train", *corpus, "--from", trained.name, *arguments)
    assert (ran.code, ran.out, ran.err.count("\n")) == (2, "", 1)
    assert named in ran.err
    assert registry.all_runs() == [trained]


def test_unknown_base_is_refused(letters: Path, run: Callable[..., Ran]) -> None:
    ran = run("train", str(letters), "--from", "no-such-run")
    assert (ran.code, registry.all_runs()) == (2, [])
    assert "no-such-run" in ran.err


def test_train_takes_a_base(letters: Path, trained: Run) -> None:
    started = next(iter(grimmgen.train(str(letters), base=trained.name, batch_size=4, epochs=1)))
    assert isinstance(started, Started)
    assert (started.base, started.configuration.hidden) == ("sly-fox", 8)
    with pytest.raises(UsageError, match="contradicts"):
        next(grimmgen.train(str(letters), base=trained.name, hidden=9))
