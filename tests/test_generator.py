"""Telling: prompts, what is drawn and what never is, and that a story can be told again."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from grimmgen.configuration import Configuration
from grimmgen.errors import UsageError
from grimmgen.evaluation.novelty import CopyIndex
from grimmgen.network.backends.numpy import Stepper
from grimmgen.network.shapes import weight_shapes
from grimmgen.runs.checkpoint import Checkpoint
from grimmgen.sampling import generator, options
from grimmgen.sampling.generator import TextGenerator
from grimmgen.sampling.options import LONGEST, SamplingOptions
from grimmgen.text.vocabulary import END, UNKNOWN, Vocabulary
from tests.builders import NETWORKS, tiny_checkpoint
from tests.builders import TEXT as STORY

TEXT = "the king and the fox went to the king's house, zq "
CONFIGURATION = Configuration(hidden=5)


def teller(bias: dict[int, float] | None = None, scale: float = 0.5) -> TextGenerator:
    """A model of random weights, with the bias of some tokens changed."""
    vocabulary = Vocabulary.build([TEXT], min_count=1)
    draw = np.random.default_rng(0)
    weights = {
        name: draw.normal(0, scale, shape).astype(np.float32)
        for name, shape in weight_shapes(CONFIGURATION, len(vocabulary)).items()
    }
    for token, value in (bias or {}).items():
        weights["output.bias"][token] = value
    return TextGenerator("test", Checkpoint(CONFIGURATION, vocabulary, {}, weights))


def test_a_story_is_the_same_for_the_same_random_seed_and_another_for_another() -> None:
    model = teller({END: -99})
    first, again, other = (model.generate("the", length=60, random_seed=seed) for seed in (7, 7, 8))
    assert first == again != other


@pytest.mark.parametrize("length", [1, 2, 3, 50])
def test_length_is_in_characters_after_the_prompt(length: int) -> None:
    assert len(teller({END: -99}).generate("the ", length=length)) == 4 + length


def test_the_prompt_comes_first_folded_as_the_corpus_was_and_alone_before_anything_is_drawn() -> None:
    pieces = teller({END: -99}).tell("The KING", SamplingOptions(length=10))
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
        teller().generate("the", **{option: value})


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
    options = SamplingOptions(length=101, top_k=0, random_seed=5)
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
        monkeypatch.setattr(generator, "_WAIT", wait)
        pieces = list(model.tell("", SamplingOptions(length=2000, random_seed=1)))
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
        teller().tell_several("", SamplingOptions(), stories)


def test_random_seeds_that_there_are_not_are_refused() -> None:
    with pytest.raises(UsageError, match="leaves none for 3 stories"):
        teller().tell_several("", SamplingOptions(random_seed=2**63 - 2), 3)
    assert len(teller().tell_several("", SamplingOptions(random_seed=2**63 - 2), 2)) == 2


# --- each way of telling ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"top_k": 7},
        {"top_p": 0.6},
        {"min_p": 0.3},
        {"temperature": 2.0},
        {"greedy": True},
        {"repetition_penalty": 3.0},
        {"beam_width": 3},
        {"beam_width": 3, "beam_depth": 2},
        {"beam_width": 3, "greedy": True},
        {"beam_width": 3, "temperature": 3.0},
        {"random_seed": 4},
        {"state": "zeros"},
    ],
    ids=str,
)
@pytest.mark.parametrize("kernel", ["plain", ""])
def test_every_option_changes_what_is_told_and_tells_it_again(
    options: dict[str, Any], kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRIMMGEN_KERNEL", kernel)
    model = teller({END: -99}, scale=1.0)
    given = {"length": 120, "random_seed": 3}
    others = [given, {**given, "beam_width": 3}] if "beam_width" in options and len(options) > 1 else [given]
    stories = [model.generate("the", **{**given, **options}) for _ in range(2)]
    assert stories[0] == stories[1]
    assert len(stories[0]) == 123
    assert all(stories[0] != model.generate("the", **other) for other in others)


def test_greedy_needs_no_chance_but_its_state() -> None:
    model = teller({END: -99})
    for options in ({}, {"beam_width": 4}):
        stories = {
            model.generate("the", length=60, greedy=True, random_seed=s, state="zeros", **options)
            for s in range(4)
        }
        assert len(stories) == 1


def test_a_penalty_keeps_from_saying_the_same_again_and_again() -> None:
    # Without it the best follows itself for ever.
    model = teller({END: -99}, scale=0.01)
    model.checkpoint.weights["output.bias"][5] = 1.0
    plain, penalised = (
        model.generate("", length=40, greedy=True, repetition_penalty=penalty) for penalty in (1.0, 2.0)
    )
    assert plain == model.vocabulary.token(5) * 20
    assert len({penalised[i : i + 2] for i in range(0, 40, 2)}) > 5


def test_the_prompt_counts_for_the_penalty() -> None:
    model = teller({END: -99}, scale=0.01)
    model.checkpoint.weights["output.bias"][5] = 1.0
    told = model.generate(model.vocabulary.token(5), length=2, greedy=True, repetition_penalty=3.0)
    assert told[2:] != model.vocabulary.token(5)


def test_without_a_length_a_story_goes_on_to_its_end_or_to_a_bound() -> None:
    for bias, ending in ((-4.0, "end"), (-99.0, "length")):
        [told] = teller({END: bias}).tell_several("the ", SamplingOptions(random_seed=2), 1)
        assert told.ending == ending
        assert (len(told.text) == 4 + LONGEST) == (ending == "length")
        assert (told.ids[-1] == END) == (ending == "end")
    for name in ("top_p", "beam_width"):
        value: Any = {"top_p": 0.9, "beam_width": 5}[name]
        [told] = teller({END: 1.0}).tell_several("", SamplingOptions(**{name: value}), 1)
        assert told.ending == "end"


def test_a_story_without_a_prompt_begins_as_the_checkpoint_says_stories_begin() -> None:
    model = teller({END: -99})
    begin = ["the ", "king"]
    ids = [model.vocabulary.ngrams.index(text[:2]) + 2 for text in begin]
    known = replace(model.checkpoint, provenance={"beginnings": ids})
    told = {TextGenerator("t", known).generate("", length=2, top_k=0, random_seed=s) for s in range(60)}
    assert told == {"th", "ki"}
    # A prompt has begun already; what a stranger's checkpoint says is not trusted.
    assert len(TextGenerator("t", known).generate("th", length=8)) == 10
    for strange in ([10**9, -1, UNKNOWN, END, "x", None], "x", None, 7, []):
        hostile = TextGenerator("t", replace(model.checkpoint, provenance={"beginnings": strange}))
        assert hostile.generate("", length=8) == model.generate("", length=8)


@pytest.mark.parametrize(
    ("until", "text", "cut"),
    [
        ("sentence", "he went. then", "he went."),
        ("sentence", 'he "went!" then', 'he "went!"'),
        ("sentence", "he has 3.5 ends. x", "he has 3.5 ends."),
        ("sentence", "he went.", None),
        ("sentence", "\u738b\u8d70\u4e86\u3002\u7136\u540e", "\u738b\u8d70\u4e86\u3002"),
        ("paragraph", "one\ntwo\n\nthree", "one\ntwo"),
        ("paragraph", "one\ntwo\n \nthree", "one\ntwo"),
        ("paragraph", "\n\none", None),
        ("The Fox", "where the fox is", "where the fox"),
        ("fox.", "the foxx. the fox. ", "the foxx. the fox."),
        ("aab", "aaaab", "aaaab"),
    ],
)
@pytest.mark.parametrize("at_once", [1, 2, 3, 100])
def test_a_story_is_told_until_there_wherever_pieces_end(
    until: str, text: str, cut: str | None, at_once: int
) -> None:
    stop, told = generator._Stop(until, teller().vocabulary), ""
    for begin in range(0, len(text), at_once):
        piece = text[begin : begin + at_once]
        if (end := stop.within(piece)) is not None:
            # What has left cannot be taken back: the line end that an empty line begins with may have.
            assert (told + piece[:end]).rstrip("\n ") == cut
            return
        told += piece
    assert cut is None


def test_until_ends_what_is_told_and_not_the_prompt() -> None:
    model = teller({END: -99})
    [told] = model.tell_several("the fox ", SamplingOptions(until="FOX", top_k=0, random_seed=1), 1)
    assert told.ending == "until"
    assert told.text.endswith("fox")
    assert told.text[8:].count("fox") == 1
    [short] = model.tell_several("the fox ", SamplingOptions(until="fox", length=3, top_k=0, random_seed=1), 1)
    assert (short.ending, len(short.text)) == ("length", 11)


def test_a_model_without_line_ends_knows_no_paragraphs() -> None:
    with pytest.raises(UsageError, match="test has learnt no line ends: it knows no paragraphs"):
        teller().generate(until="paragraph")


# --- what is copied --------------------------------------------------------------------------------------


def copyist() -> TextGenerator:
    """A model that knows its training story nearly by heart: what follows a bigram there follows it here."""
    vocabulary = Vocabulary.build([TEXT], min_count=1)
    configuration = Configuration(hidden=len(vocabulary))
    V = len(vocabulary)
    weights = {name: np.zeros(shape, np.float32) for name, shape in weight_shapes(configuration, V).items()}
    # The state is the last n-gram: all gates open but the one that remembers.
    weights["layers.0.input_weight"] = np.concatenate([9 * np.eye(V)] * 4, axis=1).astype(np.float32)
    weights["layers.0.bias"] = np.repeat(np.array([9, -9, -0.5, 9], np.float32), V)
    ids = [END, *vocabulary.encode(TEXT).tolist(), END]
    for before, after in itertools.pairwise(ids):
        weights["output.weight"][before, after] += 8.0
    weights["output.bias"][END] = -20.0
    return TextGenerator(
        "copyist", Checkpoint(configuration, vocabulary, {}, weights), lambda: CopyIndex.build([("text", TEXT)])
    )


def longest_copy(text: str, story: str = TEXT) -> int:
    return max(
        (b - a for a in range(len(text)) for b in range(a + 1, len(text) + 1) if text[a:b] in story), default=0
    )


WAYS: list[dict[str, Any]] = [
    {},
    {"top_k": 0},
    {"top_p": 0.9},
    {"greedy": True},
    {"repetition_penalty": 1.5},
    {"beam_width": 4},
    {"beam_width": 4, "greedy": True},
]


@pytest.mark.parametrize("way", WAYS, ids=str)
@pytest.mark.parametrize("most", [3, 6, 11])
def test_no_more_characters_in_a_row_than_max_copy_stand_in_the_training_stories(
    most: int, way: dict[str, Any]
) -> None:
    model = copyist()
    for prompt in ("", "the"):
        options = SamplingOptions(max_copy=most, length=150, random_seed=1, **way)
        told = model.tell_several(prompt, options, 3)
        free = model.tell_several(prompt, replace(options, max_copy=None), 3)
        assert max(longest_copy(story.text) for story in told) <= max(most, len(prompt))
        assert max(longest_copy(story.text) for story in free) > most
        assert all(story.copied == 0 for story in told)
        assert [story.text for story in told] == [
            model.generate(prompt, max_copy=most, length=150, random_seed=1 + number, **way) for number in range(3)
        ]


def test_where_nothing_would_copy_max_copy_changes_nothing() -> None:
    model = copyist()
    for way in WAYS:
        free = model.generate("the", length=90, **way)
        assert model.generate("the", length=90, max_copy=longest_copy(free) + 2, **way) == free


def test_a_copy_in_the_prompt_is_not_gone_on_with() -> None:
    model = copyist()
    prompt = TEXT[:24]
    told = model.generate(prompt, length=2, max_copy=10, greedy=True)
    assert told[24:] != TEXT[24:26]
    assert model.generate(prompt, length=2, greedy=True)[24:] == TEXT[24:26]


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_where_all_ways_on_are_copied_the_shortest_is_taken_and_told(way: dict[str, Any]) -> None:
    # One letter, and a story of nothing else: whatever follows is copied.
    vocabulary = Vocabulary.build(["a" * 200], min_count=1)
    configuration = Configuration(hidden=2)
    weights = {
        name: np.zeros(shape, np.float32) for name, shape in weight_shapes(configuration, len(vocabulary)).items()
    }
    weights["output.bias"][END] = -np.inf
    model = TextGenerator(
        "a", Checkpoint(configuration, vocabulary, {}, weights), lambda: CopyIndex.build([("a", "a" * 200)])
    )
    [told] = model.tell_several("", SamplingOptions(max_copy=5, length=20, **way), 1)
    assert (told.text, told.copied) == ("a" * 20, 20)


def test_max_copy_without_training_stories_is_refused() -> None:
    with pytest.raises(UsageError, match="--max-copy has no training stories to look at"):
        teller().generate(max_copy=20)


# --- what a story has cost, and words --------------------------------------------------------------------


@pytest.mark.parametrize("kernel", ["plain", ""])
def test_the_log_probability_is_the_sum_over_ngrams_worked_out_by_hand(
    kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRIMMGEN_KERNEL", kernel)
    model = teller({END: 0.0})
    for way in WAYS:
        for told in model.tell_several("the ", SamplingOptions(length=40, random_seed=6, state="zeros", **way), 3):
            stepper = Stepper(CONFIGURATION, model.checkpoint.weights, *np.zeros((2, 1, 1, 5), np.float32))
            ids = [END, *model.vocabulary.encode("the ").tolist(), *told.ids]
            total = 0.0
            for number, token in enumerate(ids):
                if number > 2:
                    p = np.exp(stepper.logits[0].astype(np.float64))
                    total += float(np.log(p[token] / p.sum()))
                stepper.step([token])
            assert model.vocabulary.decode(told.ids) == told.text[4:]
            assert model.log_probability(told) == pytest.approx(total, abs=1e-3)


def test_of_an_ngram_that_was_begun_or_cut_only_what_was_told_counts() -> None:
    model = teller({END: -99})
    # Only one bigram begins with k: what follows it is certain.
    [sure] = model.tell_several("the k", SamplingOptions(length=1), 1)
    assert model.log_probability(sure) == pytest.approx(0.0, abs=1e-6)
    stepper = Stepper(CONFIGURATION, model.checkpoint.weights, *np.zeros((2, 1, 1, 5), np.float32))
    p = np.exp(options.log_probabilities(stepper.step([END])[0]))
    [cut] = model.tell_several("", SamplingOptions(length=1, state="zeros", random_seed=4), 1)
    same = [i for i in range(2, len(p)) if model.vocabulary.token(i)[0] == cut.text]
    assert model.log_probability(cut) == pytest.approx(float(np.log(p[same].sum())), abs=1e-5)


def test_next_words_go_on_with_the_text_and_within_its_last_word() -> None:
    model = copyist()
    words = model.next_words("the ", 3)
    assert words[0][0] == "king"
    assert [p for _, p in words] == sorted((p for _, p in words), reverse=True)
    assert model.next_words("the k", 3)[0][0] == "ing"
    assert model.next_words("The king", 3)[0][0].strip() in {"and", "'s"}
    assert len(model.next_words("", 2)) == 2


def test_what_the_model_does_not_know_of_a_prompt_is_told_by_character_and_by_ngram() -> None:
    model = teller()
    assert model.unknown_in("the king") == ([], [])
    assert model.unknown_in("thzk\u4e2dy the") == (["\u4e2d", "y"], ["zk"])
    # At its end a letter that no n-gram begins with.
    assert model.unknown_in("the e")[1] == [] or "e" in model.unknown_in("the e")[1]


@pytest.mark.parametrize("prompt", ["", "t", "\u4e2d", "\U0001f98a", "zz" * 9, "the " * 9999])
@pytest.mark.parametrize("way", WAYS, ids=str)
def test_any_prompt_is_gone_on_with_in_every_way(prompt: str, way: dict[str, Any]) -> None:
    told = copyist().generate(prompt, length=11, max_copy=9, **way)
    assert told.startswith(prompt)
    assert len(told) == len(prompt) + 11


@pytest.mark.parametrize("network", NETWORKS)
def test_every_network_tells_in_every_way(network: str) -> None:
    checkpoint = tiny_checkpoint(**NETWORKS[network])
    checkpoint.weights["output.bias"][END] = -99.0
    model = TextGenerator("tiny", checkpoint, lambda: CopyIndex.build([("text", STORY)]))
    for way in WAYS:
        for most in (None, 5):
            told = model.tell_several("The k", SamplingOptions(length=20, max_copy=most, **way), 2)
            assert [len(story.text) for story in told] == [25, 25]
            assert model.log_probability(told[1]) < 0
    assert model.next_words("the ", 3)
