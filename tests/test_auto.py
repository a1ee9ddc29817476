"""`--preset auto`: what it looks at, what it chooses, and that the choice is kept."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from grimmgen.configuration import UNLIMITED_EPOCHS, Configuration
from grimmgen.errors import UsageError
from grimmgen.runs import registry
from grimmgen.text.corpus import open_corpus
from grimmgen.training import auto
from grimmgen.training.auto import RECOMMENDED, TextFacts, choose, measure_speed, operations_per_token
from tests.program import Ran

LETTERS = TextFacts(50_000, 40, 2_000)


def chosen_for(
    text: TextFacts = LETTERS, speed: float = 1e10, base: Configuration | None = None, **chosen: Any
) -> Configuration:
    return choose(chosen, text, speed, base).configuration


@pytest.fixture
def letters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("GRIMMGEN_TRAIN_PRESET")
    monkeypatch.setattr(auto, "_MEASURED", 0.0)
    path = tmp_path / "letters.txt"
    path.write_text("dear hen, the king and i are at the end of the forest. write soon!\n" * 40, encoding="utf-8")
    return path


# --- what it looks at ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("sample", [1 << 20, 100])
def test_text_is_estimated_from_its_beginning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sample: int
) -> None:
    monkeypatch.setattr(auto, "_SAMPLE", sample)
    for number in range(4):
        (tmp_path / f"{number}.txt").write_text("bär " * 100, encoding="utf-8")
    found = TextFacts.of(open_corpus(str(tmp_path)).documents)
    assert found.alphabet == 4
    # The end of a document counts.
    assert found.characters == pytest.approx(1600, rel=0.01)
    assert found.document == pytest.approx(400, rel=0.01)


def test_speed_is_measured_in_floating_point_operations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auto, "_MEASURED", 0.0)
    assert 1e7 < measure_speed(torch.device("cpu")) < 1e15


def test_operations_are_those_of_the_products() -> None:
    V, H = 1000, 128
    assert operations_per_token(Configuration(hidden=H), V) == pytest.approx(6 * (4 * H * H + H * V), rel=0.02)


# --- what it chooses -----------------------------------------------------------------------------------------


def test_each_row_of_the_table_is_chosen_at_its_place() -> None:
    for row in RECOMMENDED:
        made = chosen_for(TextFacts(row.characters, 40, 2_000), row.work / 60, budget=60.0)
        expected = {name: value for name, value in row.options.items() if name not in {"epochs", "dropout"}}
        assert {name: getattr(made, name) for name in expected} == expected


def test_large_network_wherever_it_is_trained_long_enough() -> None:
    text = TextFacts(2e5, 40, 2_000)
    assert [chosen_for(text, speed, budget=60.0).hidden for speed in (1e10, 2e11)] == [128, 512]
    # Of a small text it would be many epochs of a few updates.
    assert chosen_for(TextFacts(1e4, 40, 2_000), 5e9, budget=60.0).hidden == 128


def test_dropout_follows_from_the_epochs() -> None:
    small, large = TextFacts(1e5, 40, 2_000), TextFacts(1e6, 40, 2_000)
    assert chosen_for(small, 1e10, budget=60.0).dropout == 0.5
    assert chosen_for(large, 1e12, budget=60.0).dropout == 0.55
    # Some six epochs of the largest network.
    assert 0.1 < chosen_for(large, 3e11, budget=60.0).dropout < 0.4
    assert 0.1 < chosen_for(large, 3e11, budget=60.0).weight_drop < 0.3
    assert chosen_for(large, 1e10, budget=20.0).dropout == 0.0
    assert chosen_for(large, 1e10, budget=20.0, dropout=0.4).dropout == 0.4


def test_large_text_needs_fewer_epochs() -> None:
    epochs = [chosen_for(TextFacts(size, 40, 2_000), 1e11).epochs for size in (1e6, 1e7, 1e9)]
    assert epochs[0] > epochs[1] > epochs[2] == 1


def test_more_work_never_chooses_a_smaller_network() -> None:
    for characters in (1e3, 1e5, 1e7):
        text = TextFacts(characters, 40, 2_000)
        sizes = [chosen_for(text, 10.0**power, budget=60.0).hidden for power in range(7, 14)]
        assert sizes == sorted(sizes)


def test_budget_that_suffices_for_few_epochs_anneals_to_its_end() -> None:
    text = TextFacts(1e6, 40, 2_000)
    assert chosen_for(text, 1e10, budget=20.0).epochs == UNLIMITED_EPOCHS
    assert chosen_for(text, 1e10, budget=1e6).epochs < 200
    assert chosen_for(text, 1e10).epochs < 200
    assert chosen_for(text, 1e10, budget=20.0, epochs=7).epochs == 7


@pytest.mark.parametrize(
    ("text", "tokens"),
    [(LETTERS, "bpe:1000"), (TextFacts(14_000, 27, 7), "char"), (TextFacts(50_000, 2_500, 2_000), "char")],
    ids=["prose", "names", "Chinese"],
)
def test_tokens_follow_from_the_kind_of_text(text: TextFacts, tokens: str) -> None:
    assert chosen_for(text).tokens == tokens


def test_options_of_the_user_are_kept() -> None:
    chosen: dict[str, Any] = {
        "hidden": 7,
        "tokens": "word",
        "dropout": 0.11,
        "batch_size": 3,
        "learning_rate": 0.5,
    }
    made = chosen_for(**chosen)
    assert {name: getattr(made, name) for name in chosen} == chosen
    assert chosen_for(phases=True).tokens == "bigram"
    assert not chosen_for(TextFacts(1e6, 40, 2_000), 1e12, tokens="word").phases


def test_base_keeps_its_architecture_and_tokens() -> None:
    base = Configuration(hidden=77, tokens="word", embedding=5, tied=True)
    made = chosen_for(base=base)
    assert (made.hidden, made.tokens, made.embedding, made.tied) == (77, "word", 5, True)


def test_rate_is_lower_where_the_base_predicts_the_text_well() -> None:
    base = Configuration(hidden=77)
    rates = [choose({}, LETTERS, 1e10, base, bits).configuration.learning_rate for bits in (1.4, 1.6, 3.0, 9.0)]
    assert rates == sorted(rates)
    assert rates[0] < rates[1] / 1.1 < rates[2] / 3
    assert rates[3] == chosen_for().learning_rate
    assert choose({"learning_rate": 0.1}, LETTERS, 1e10, base, 1.4).configuration.learning_rate == 0.1


# --- the command ---------------------------------------------------------------------------------------------


def test_choice_is_the_default_for_a_text_and_is_kept(letters: Path, run: Callable[..., Ran]) -> None:
    short: Sequence[str] = ["--hidden", "8", "--epochs", "1"]
    ran = run("train", str(letters), "--run", "owl", *short, "--json")
    assert ran.code == 0
    started = next(e for e in map(json.loads, ran.out.splitlines()) if e["event"] == "started")
    owl = registry.find("owl")
    reason = owl.info()["reason"]
    assert started["reason"] == reason
    assert "bpe:1000, 8 units" in reason
    assert owl.configuration.tokens == "bpe:1000"
    ran = run("train", "--resume", "--run", "owl", "--epochs", "2")
    assert f"auto: {reason}" in " ".join(ran.err.split())
    assert registry.find("owl").configuration.tokens == "bpe:1000"
    assert "auto" in [line.split()[0] for line in run("runs", "show", "owl").out.splitlines() if line.strip()]


def test_tutorial_is_the_default_for_the_tales(letters: Path, run: Callable[..., Ran]) -> None:
    small = ["--hidden", "4", "--epochs", "1", "--unroll", "400"]
    assert run("train", "--corpus", "sampler", "--run", "cat", *small).code == 0
    cat = registry.find("cat")
    assert (cat.configuration.tokens, cat.configuration.schedule) == ("bigram", "plateau")
    assert "reason" not in cat.info()
    assert run("train", str(letters), "--run", "hen", "--preset", "tutorial", *small).code == 0
    assert registry.find("hen").configuration.tokens == "bigram"


def test_run_that_has_read_more_is_proposed(letters: Path, run: Callable[..., Ran]) -> None:
    small = ["--hidden", "4", "--epochs", "1", "--unroll", "400"]
    hint = "--from cat"
    assert hint not in run("train", str(letters), *small).err
    assert run("train", "--corpus", "sampler", "--run", "cat", *small).code == 0
    assert hint in run("train", str(letters), *small).err
    assert hint not in run("train", str(letters), "--from", "cat", "--epochs", "1").err
    assert hint not in run("train", str(letters), "--quiet", *small).err


def test_impossible_option_is_refused_before_reading(run: Callable[..., Ran], letters: Path) -> None:
    ran = run("train", str(letters.with_name("missing.txt")), "--preset", "auto", "--decay-factor", "0.5")
    assert (ran.code, ran.err.count("\n")) == (2, 1)
    assert "--decay-factor" in ran.err
    with pytest.raises(UsageError):
        chosen_for(hidden=0)
