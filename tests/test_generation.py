"""Telling: prompts, what is drawn and what never is, and that a story can be told again."""

from __future__ import annotations

import numpy as np
import pytest

from grimmgen import generation
from grimmgen.checkpoint import Checkpoint
from grimmgen.configuration import Configuration, weight_shapes
from grimmgen.decoding import Decoding
from grimmgen.errors import UsageError
from grimmgen.generation import Storyteller
from grimmgen.kernels.stepping import Stepper
from grimmgen.vocabulary import END, UNKNOWN, Vocabulary

TEXT = "the king and the fox went to the king's house, zq "
CONFIGURATION = Configuration(hidden=5)


def teller(bias: dict[int, float] | None = None, scale: float = 0.5) -> Storyteller:
    """A model of random weights, with the bias of some tokens changed."""
    vocabulary = Vocabulary.build([TEXT], min_count=1)
    draw = np.random.default_rng(0)
    weights = {
        name: draw.normal(0, scale, shape).astype(np.float32)
        for name, shape in weight_shapes(CONFIGURATION, len(vocabulary)).items()
    }
    for token, value in (bias or {}).items():
        weights["output.bias"][token] = value
    return Storyteller("test", Checkpoint(CONFIGURATION, vocabulary, {}, weights))


def test_a_story_is_the_same_for_the_same_random_seed_and_another_for_another() -> None:
    model = teller({END: -99})
    first, again, other = (model.generate("the", length=60, random_seed=seed) for seed in (7, 7, 8))
    assert first == again != other


@pytest.mark.parametrize("length", [1, 2, 3, 50])
def test_length_is_in_characters_after_the_prompt(length: int) -> None:
    assert len(teller({END: -99}).generate("the ", length=length)) == 4 + length


def test_the_prompt_comes_first_folded_as_the_corpus_was_and_alone_before_anything_is_drawn() -> None:
    pieces = teller({END: -99}).tell("The KING", Decoding(length=10))
    assert next(pieces) == "the king"
    assert len("".join(pieces)) == 10


@pytest.mark.parametrize("seed", range(20))
def test_an_odd_prompt_continues_inside_its_ngram(seed: int) -> None:
    model = teller({END: -99})
    story = model.generate("the k", length=1, random_seed=seed, top_k=0)
    # Only one bigram of the corpus begins with k.
    assert story == "the ki"


def test_an_odd_prompt_is_drawn_among_all_ngrams_that_begin_so_in_proportion() -> None:
    model = teller({END: -99})
    ends = {model.generate("t", length=1, random_seed=seed, top_k=0, state="zeros") for seed in range(60)}
    assert ends == {gram for gram in model.vocabulary.ngrams if gram.startswith("t")}
    assert len(ends) > 1


@pytest.mark.parametrize("prompt", ["中", "the 中文", "🦊", "\0", "a\u0301x", "zz" * 9])  # fault 41
def test_what_was_never_seen_is_bridged(prompt: str) -> None:
    model = teller({END: -99})
    story = model.generate(prompt, length=20)
    assert story.startswith(model.vocabulary.normalise(prompt))
    assert len(story) == len(model.vocabulary.normalise(prompt)) + 20


def test_unseen_characters_are_named_once_each() -> None:
    assert teller().vocabulary.unseen("The 中 and 中 ö") == ["中", "ö"]


def test_unknown_is_never_told() -> None:
    story = teller({UNKNOWN: 50.0, END: -99}).generate("the", length=200)
    assert len(story) == 203
    assert "<" not in story


def test_end_ends_the_story_but_not_within_an_ngram_that_the_prompt_began() -> None:
    model = teller({END: 50.0})
    assert model.generate("the ", length=100) == "the "
    assert len(model.generate("the k", length=100)) == 6


def test_without_a_prompt_a_story_begins_after_end_was_read() -> None:
    model = teller({END: -99})
    logits = Stepper(CONFIGURATION, model.checkpoint.weights, *np.zeros((2, 1, 1, 5), np.float32)).step([END])[0]
    logits[UNKNOWN] = -np.inf
    first = model.vocabulary.token(int(logits.argmax()))
    assert model.generate("", length=2, temperature=0.0, state="zeros") == first


def test_greedy_is_top_1_and_needs_no_chance() -> None:
    model = teller({END: -99})
    stories = {model.generate("the", temperature=0.0, random_seed=s, state="zeros") for s in range(5)}
    stories |= {model.generate("the", top_k=1, random_seed=s, state="zeros") for s in range(5)}
    assert len(stories) == 1


def test_top_k_tells_only_what_is_among_the_best() -> None:
    model = teller({END: -99})
    logits = Stepper(CONFIGURATION, model.checkpoint.weights, *np.zeros((2, 1, 1, 5), np.float32)).step([END])[0]
    best = {model.vocabulary.token(int(token)) for token in logits[2:].argsort()[-3:] + 2}
    told = {model.generate("", length=2, random_seed=seed, state="zeros") for seed in range(200)}
    assert told == best


def test_state_is_drawn_with_the_seed_as_in_the_tutorial_or_zero() -> None:
    # Weights so large that a little noise at the beginning changes the story.
    model = teller({END: -99}, scale=20.0)
    greedy = {
        state: {model.generate("", length=40, temperature=0.0, random_seed=s, state=state) for s in range(30)}
        for state in ("random", "zeros")
    }
    assert len(greedy["zeros"]) == 1 < len(greedy["random"])


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("length", 0),
        ("length", -1),
        ("top_k", -1),
        ("temperature", -0.1),
        ("temperature", float("nan")),  # fault 42
        ("temperature", float("inf")),
        ("random_seed", -1),
        ("random_seed", 2**63),
    ],
)
def test_options_out_of_range_are_refused_by_name(option: str, value: float) -> None:
    with pytest.raises(UsageError, match="--" + option.replace("_", "-")):
        teller().generate("the", **{option: value})  # type: ignore[arg-type]


def test_top_k_beyond_the_vocabulary_is_refused() -> None:
    with pytest.raises(UsageError, match="--top-k 1000 is more than the"):
        teller().generate("the", top_k=1000)


@pytest.mark.parametrize("kernel", ["plain", ""])
@pytest.mark.parametrize("prompt", ["", "the ", "the k", "t", "zz中"])
def test_several_stories_are_those_that_are_told_alone_with_the_next_random_seeds(
    prompt: str, kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRIMMGEN_KERNEL", kernel)
    model = teller({END: 1.0})
    options = Decoding(length=101, top_k=0, random_seed=5)
    told = [story.text for story in model.tell_several(prompt, options, 9)]
    assert told == [model.generate(prompt, length=101, top_k=0, random_seed=5 + number) for number in range(9)]
    # Some end of themselves, each at another place.
    assert len({len(story) for story in told}) > 3


def test_both_paths_tell_the_same_stories(monkeypatch: pytest.MonkeyPatch) -> None:
    model = teller({END: -5.0})
    told = []
    for kernel in ("plain", ""):
        monkeypatch.setenv("GRIMMGEN_KERNEL", kernel)
        told.append(
            [model.generate("the k", length=999, random_seed=s, temperature=0.5 + s / 9) for s in range(9)]
        )
    assert told[0] == told[1]
    assert max(len(story) for story in told[0]) > 500


def test_the_first_piece_comes_at_once_and_more_come_together_while_that_is_no_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = teller({END: -99})
    told = []
    for wait, first in ((60.0, [2, 4, 8, 16, 32]), (0.0, [2, 2, 2, 2, 2])):
        monkeypatch.setattr(generation, "_WAIT", wait)
        pieces = list(model.tell("", Decoding(length=2000, random_seed=1)))
        assert [len(piece) for piece in pieces[:5]] == first
        told.append("".join(pieces))
    assert told[0] == told[1]


def test_a_prompt_is_read_to_its_end_however_long_it_is() -> None:
    model = teller({END: -99})
    # Longer than what is read at once; what is remembered fades, so that only the last words count.
    long = model.generate("the fox and " * 999 + "the ", length=40, state="zeros")
    assert long.endswith(model.generate("the fox and " * 99 + "the ", length=40, state="zeros")[-44:])


@pytest.mark.parametrize("stories", [0, -1, 1025])
def test_no_story_or_too_many_are_refused(stories: int) -> None:
    with pytest.raises(UsageError, match=f"--stories {stories} is out of range"):
        teller().tell_several("", Decoding(), stories)


def test_random_seeds_that_there_are_not_are_refused() -> None:
    with pytest.raises(UsageError, match="leaves none for 3 stories"):
        teller().tell_several("", Decoding(random_seed=2**63 - 2), 3)
    assert len(teller().tell_several("", Decoding(random_seed=2**63 - 2), 2)) == 2
