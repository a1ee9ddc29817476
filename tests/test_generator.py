"""Text generation: prompts, what is sampled, stop conditions, copy limits, and reproducibility."""

from __future__ import annotations

import itertools
import json
import shutil
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from grimmgen.configuration import Configuration
from grimmgen.errors import UsageError
from grimmgen.evaluation.novelty import CopyIndex
from grimmgen.network.backends.numpy import Stepper
from grimmgen.network.shapes import weight_shapes
from grimmgen.runs import registry
from grimmgen.runs.checkpoint import Checkpoint
from grimmgen.runs.registry import Run, TrainedModel
from grimmgen.sampling import generator
from grimmgen.sampling.generator import TextGenerator
from grimmgen.sampling.logits import log_probabilities
from grimmgen.sampling.options import LONGEST, SamplingOptions
from grimmgen.text.ngrams import NgramVocabulary
from grimmgen.text.vocabulary import END, UNKNOWN
from tests.builders import NETWORKS, tiny_checkpoint
from tests.builders import TEXT as DOCUMENT

TEXT = "the king and the fox went to the king's house, zq "
CONFIGURATION = Configuration(hidden=5)


def text_generator(bias: dict[int, float] | None = None, scale: float = 0.5) -> TextGenerator:
    """A model with random weights and the given output biases of some tokens."""
    vocabulary = NgramVocabulary.build([TEXT], min_count=1)
    draw = np.random.default_rng(0)
    weights = {
        name: draw.normal(0, scale, shape).astype(np.float32)
        for name, shape in weight_shapes(CONFIGURATION, len(vocabulary)).items()
    }
    for token, value in (bias or {}).items():
        weights["output.bias"][token] = value
    return TextGenerator(TrainedModel("test", Checkpoint(CONFIGURATION, vocabulary, {}, weights)))


def test_the_random_seed_determines_the_text() -> None:
    model = text_generator({END: -99})
    first, again, other = (model.generate("the", length=60, random_seed=seed) for seed in (7, 7, 8))
    assert first == again != other


@pytest.mark.parametrize("length", [1, 2, 3, 50])
def test_length_is_in_characters_after_the_prompt(length: int) -> None:
    assert len(text_generator({END: -99}).generate("the ", length=length)) == 4 + length


def test_length_cuts_no_grapheme_cluster() -> None:
    accented = "x\u0301"  # has no composed form
    vocabulary = NgramVocabulary.build([accented * 20], min_count=1)
    shapes = weight_shapes(CONFIGURATION, len(vocabulary))
    weights = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    weights["output.bias"][END] = -99
    model = TextGenerator(TrainedModel("test", Checkpoint(CONFIGURATION, vocabulary, {}, weights)))
    assert model.generate(accented, length=8, top_k=0) == accented * 5
    [cut] = model.generate_batch(accented, SamplingOptions(length=3, top_k=0), 1)
    assert (cut.text, cut.ending, len(cut.ids)) == (accented * 2, "length", 1)


def test_the_first_piece_is_the_normalised_prompt() -> None:
    pieces = text_generator({END: -99}).stream("The KING", SamplingOptions(length=10))
    assert next(pieces) == "the king"
    assert len("".join(pieces)) == 10


@pytest.mark.parametrize("seed", range(20))
def test_a_prompt_may_end_within_an_ngram(seed: int) -> None:
    model = text_generator({END: -99})
    text = model.generate("the k", length=1, random_seed=seed, top_k=0)
    # Only one bigram of the corpus begins with k.
    assert text == "the ki"


def test_a_partial_ngram_is_completed_by_all_that_match() -> None:
    model = text_generator({END: -99})
    ends = {model.generate("t", length=1, random_seed=seed, top_k=0, state="zeros") for seed in range(60)}
    assert ends == {gram for gram in model.vocabulary.texts if gram.startswith("t")}
    assert len(ends) > 1


@pytest.mark.parametrize("prompt", ["中", "the 中文", "🦊", "\0", "a\u0301x", "zz" * 9])  # fault 41
def test_prompts_of_unknown_characters_are_continued(prompt: str) -> None:
    model = text_generator({END: -99})
    text = model.generate(prompt, length=20)
    assert text.startswith(model.vocabulary.normalise(prompt))
    assert len(text) == len(model.vocabulary.normalise(prompt)) + 20


def test_unknown_characters_are_listed_once() -> None:
    assert text_generator().vocabulary.unseen("The 中 and 中 ö") == ["中", "ö"]


def test_unk_is_never_sampled() -> None:
    text = text_generator({UNKNOWN: 50.0, END: -99}).generate("the", length=200)
    assert len(text) == 203
    assert "<" not in text


def test_end_stops_except_within_a_partial_ngram() -> None:
    model = text_generator({END: 50.0})
    assert model.generate("the ", length=100) == "the "
    assert len(model.generate("the k", length=100)) == 6


def test_an_empty_prompt_starts_after_end() -> None:
    model = text_generator({END: -99})
    logits = Stepper(CONFIGURATION, model.checkpoint.weights, np.zeros((2, 1, 1, 5), np.float32)).step([END])[0]
    logits[UNKNOWN] = -np.inf
    first = model.vocabulary.token(int(logits.argmax()))
    assert model.generate("", length=2, temperature=0.0, state="zeros") == first


def test_temperature_0_and_top_k_1_are_deterministic() -> None:
    model = text_generator({END: -99})
    texts = {model.generate("the", temperature=0.0, random_seed=s, state="zeros") for s in range(5)}
    texts |= {model.generate("the", top_k=1, random_seed=s, state="zeros") for s in range(5)}
    assert len(texts) == 1


def test_top_k_samples_only_the_most_probable() -> None:
    model = text_generator({END: -99})
    logits = Stepper(CONFIGURATION, model.checkpoint.weights, np.zeros((2, 1, 1, 5), np.float32)).step([END])[0]
    best = {model.vocabulary.token(int(token)) for token in logits[2:].argsort()[-3:] + 2}
    texts = {model.generate("", length=2, random_seed=seed, state="zeros") for seed in range(200)}
    assert texts == best


def test_the_initial_state_is_random_or_zero() -> None:
    # The weights are so large that the noise of the initial state changes the text.
    model = text_generator({END: -99}, scale=20.0)
    greedy = {
        state: {model.generate("", length=40, temperature=0.0, random_seed=s, state=state) for s in range(30)}
        for state in ("random", "zeros")
    }
    assert len(greedy["zeros"]) == 1 < len(greedy["random"])


def test_top_k_beyond_the_vocabulary_is_refused() -> None:
    with pytest.raises(UsageError, match="--top-k 1000 is more than the"):
        text_generator().generate("the", top_k=1000)


@pytest.mark.parametrize("kernel", ["plain", ""])
@pytest.mark.parametrize("prompt", ["", "the ", "the k", "t", "zz中"])
def test_a_batch_equals_single_runs_with_consecutive_seeds(
    prompt: str, kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRIMMGEN_KERNEL", kernel)
    model = text_generator({END: 1.0})
    options = SamplingOptions(length=101, top_k=0, random_seed=5)
    texts = [generation.text for generation in model.generate_batch(prompt, options, 9)]
    assert texts == [model.generate(prompt, length=101, top_k=0, random_seed=5 + number) for number in range(9)]
    # Some end by themselves, at different lengths.
    assert len({len(text) for text in texts}) > 3


def test_numpy_and_compiled_steppers_give_the_same_text(monkeypatch: pytest.MonkeyPatch) -> None:
    model = text_generator({END: -5.0})
    texts = []
    for kernel in ("plain", ""):
        monkeypatch.setenv("GRIMMGEN_KERNEL", kernel)
        texts.append(
            [model.generate("the k", length=999, random_seed=s, temperature=0.5 + s / 9) for s in range(9)]
        )
    assert texts[0] == texts[1]
    assert max(len(text) for text in texts[0]) > 500


def test_pieces_grow_while_they_arrive_quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    model = text_generator({END: -99})
    texts = []
    for seconds, first in ((60.0, [2, 4, 8, 16, 32]), (0.0, [2, 2, 2, 2, 2])):
        monkeypatch.setattr(generator, "_MAX_CHUNK_SECONDS", seconds)
        pieces = list(model.stream("", SamplingOptions(length=2000, random_seed=1)))
        assert [len(piece) for piece in pieces[:5]] == first
        texts.append("".join(pieces))
    assert texts[0] == texts[1]


def test_a_long_prompt_is_read_to_its_end() -> None:
    model = text_generator({END: -99})
    # Longer than one read; the state forgets, so that only the last words have an influence.
    long = model.generate("the fox and " * 999 + "the ", length=40, state="zeros")
    assert long.endswith(model.generate("the fox and " * 99 + "the ", length=40, state="zeros")[-44:])


@pytest.mark.parametrize("count", [0, -1, 1025])
def test_a_count_out_of_range_is_refused(count: int) -> None:
    with pytest.raises(UsageError, match=f"--stories {count} is out of range"):
        text_generator().generate_batch("", SamplingOptions(), count)


def test_random_seeds_beyond_the_range_are_refused() -> None:
    with pytest.raises(UsageError, match="too large for 3 stories"):
        text_generator().generate_batch("", SamplingOptions(random_seed=2**63 - 2), 3)
    assert len(text_generator().generate_batch("", SamplingOptions(random_seed=2**63 - 2), 2)) == 2


# --- sampling options ----------------------------------------------------------------------------------------


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
def test_every_option_has_a_reproducible_effect(
    options: dict[str, Any], kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRIMMGEN_KERNEL", kernel)
    model = text_generator({END: -99}, scale=1.0)
    given = {"length": 120, "random_seed": 3}
    others = [given, {**given, "beam_width": 3}] if "beam_width" in options and len(options) > 1 else [given]
    texts = [model.generate("the", **{**given, **options}) for _ in range(2)]
    assert texts[0] == texts[1]
    assert len(texts[0]) == 123
    assert all(texts[0] != model.generate("the", **other) for other in others)


def test_greedy_is_deterministic_from_a_zero_state() -> None:
    model = text_generator({END: -99})
    for options in ({}, {"beam_width": 4}):
        texts = {
            model.generate("the", length=60, greedy=True, random_seed=s, state="zeros", **options)
            for s in range(4)
        }
        assert len(texts) == 1


def test_the_repetition_penalty_prevents_loops() -> None:
    # Without a penalty the most probable n-gram repeats for ever.
    model = text_generator({END: -99}, scale=0.01)
    model.checkpoint.weights["output.bias"][5] = 1.0
    plain, penalised = (
        model.generate("", length=40, greedy=True, repetition_penalty=penalty) for penalty in (1.0, 2.0)
    )
    assert plain == model.vocabulary.token(5) * 20
    assert len({penalised[i : i + 2] for i in range(0, 40, 2)}) > 5


def test_the_repetition_penalty_applies_to_the_prompt() -> None:
    model = text_generator({END: -99}, scale=0.01)
    model.checkpoint.weights["output.bias"][5] = 1.0
    text = model.generate(model.vocabulary.token(5), length=2, greedy=True, repetition_penalty=3.0)
    assert text[2:] != model.vocabulary.token(5)


def test_without_a_length_text_runs_to_its_end_or_the_limit() -> None:
    for bias, ending in ((-4.0, "end"), (-99.0, "length")):
        [generation] = text_generator({END: bias}).generate_batch("the ", SamplingOptions(random_seed=2), 1)
        assert generation.ending == ending
        assert (len(generation.text) == 4 + LONGEST) == (ending == "length")
        assert (generation.ids[-1] == END) == (ending == "end")
    for name in ("top_p", "beam_width"):
        value: Any = {"top_p": 0.9, "beam_width": 5}[name]
        [generation] = text_generator({END: 1.0}).generate_batch("", SamplingOptions(**{name: value}), 1)
        assert generation.ending == "end"


def test_an_empty_prompt_uses_the_checkpoints_first_ngrams() -> None:
    model = text_generator({END: -99})
    begin = ["the ", "king"]
    ids = [model.vocabulary.texts.index(text[:2]) + 2 for text in begin]
    known = TrainedModel("t", replace(model.checkpoint, provenance={"beginnings": ids}))
    texts = {TextGenerator(known).generate("", length=2, top_k=0, random_seed=s) for s in range(60)}
    assert texts == {"th", "ki"}
    # A prompt is the beginning already; an invalid list in a checkpoint is ignored.
    assert len(TextGenerator(known).generate("th", length=8)) == 10
    for strange in ([10**9, -1, UNKNOWN, END, "x", None], "x", None, 7, []):
        hostile = TextGenerator(TrainedModel("t", replace(model.checkpoint, provenance={"beginnings": strange})))
        assert hostile.generate("", length=8) == model.generate("", length=8)


@pytest.mark.parametrize(
    ("until", "text", "cut"),
    [
        ("sentence", "he went. then", "he went."),
        ("sentence", 'he "went!" then', 'he "went!"'),
        ("sentence", "he has 3.5 ends. x", "he has 3.5 ends."),
        ("sentence", "he went.", None),
        ("sentence", "\u738b\u8d70\u4e86\u3002\u7136\u540e", "\u738b\u8d70\u4e86\u3002"),
        ("sentence", "\u738b\u300c\u8d70\u3002\u300d\u7136", "\u738b\u300c\u8d70\u3002\u300d"),
        (
            "sentence",
            "\u0930\u093e\u091c\u093e \u0939\u0948\u0964 \u090f\u0915",
            "\u0930\u093e\u091c\u093e \u0939\u0948\u0964",
        ),
        ("sentence", "\u06c1\u06d2\u06d4 \u0627", "\u06c1\u06d2\u06d4"),
        ("sentence", "\u0622\u06cc\u0627\u061f \u0646\u0647", "\u0622\u06cc\u0627\u061f"),
        ("paragraph", "one\ntwo\n\nthree", "one\ntwo"),
        ("paragraph", "one\ntwo\n \nthree", "one\ntwo"),
        ("paragraph", "\n\none", None),
        ("line", "\n\none \ntwo", "\n\none"),
        ("line", "one", None),
        ("page", "a. " * 266 + "bc. d. e", "a. " * 266 + "bc."),
        ("page", "a. " * 266 + "b, c", None),
        ("end", "he went. then\n\nthe end", None),
        ("The Fox", "where the fox is", "where the fox"),
        ("fox.", "the foxx. the fox. ", "the foxx. the fox."),
        ("aab", "aaaab", "aaaab"),
    ],
)
def test_until_is_found_across_pieces(until: str, text: str, cut: str | None) -> None:
    vocabulary = text_generator().vocabulary
    for size in (1, 2, 3, 100):
        stop, before, found = generator._StopCondition(until, vocabulary), "", None
        for begin in range(0, len(text), size):
            piece = text[begin : begin + size]
            if (end := stop.find(piece)) is not None:
                # The first line end of an empty line may have been printed before the second one is known.
                found = (before + piece[:end]).rstrip("\n ")
                break
            before += piece
        assert found == cut, size


def test_distinct_texts_have_their_own_seeds() -> None:
    model = text_generator()
    options = SamplingOptions(length=4, top_k=4, random_seed=5)
    found = list(model.generate_distinct("", options, 12))
    assert len({generation.text for generation in found}) == 12
    assert len({g.text for g in model.generate_batch("", options, 12)}) < 12
    for generation in found:
        assert model.generate_batch("", generation.options, 1)[0].text == generation.text


def test_distinct_texts_end_when_there_are_no_more() -> None:
    model = text_generator({END: -99})
    assert len(list(model.generate_distinct("the ", SamplingOptions(length=2, top_k=1), 9))) == 1


def test_until_ignores_the_prompt() -> None:
    model = text_generator({END: -99})
    [generation] = model.generate_batch("the fox ", SamplingOptions(until="FOX", top_k=0, random_seed=1), 1)
    assert generation.ending == "until"
    assert generation.text.endswith("fox")
    assert generation.text[8:].count("fox") == 1
    [short] = model.generate_batch("the fox ", SamplingOptions(until="fox", length=3, top_k=0, random_seed=1), 1)
    assert (short.ending, len(short.text)) == ("length", 11)


def test_until_paragraph_needs_line_ends() -> None:
    with pytest.raises(UsageError, match="test was trained without line ends"):
        text_generator().generate(until="paragraph")


# --- copy limits ---------------------------------------------------------------------------------------------


def copyist() -> TextGenerator:
    """A model that nearly memorises its training document: each bigram predicts the one after it there."""
    vocabulary = NgramVocabulary.build([TEXT], min_count=1)
    configuration = Configuration(hidden=len(vocabulary))
    V = len(vocabulary)
    weights = {name: np.zeros(shape, np.float32) for name, shape in weight_shapes(configuration, V).items()}
    # The state is the last n-gram: all gates are open except the forget gate.
    weights["layers.0.input_weight"] = np.concatenate([9 * np.eye(V)] * 4, axis=1).astype(np.float32)
    weights["layers.0.bias"] = np.repeat(np.array([9, -9, -0.5, 9], np.float32), V)
    ids = [END, *vocabulary.encode(TEXT).tolist(), END]
    for before, after in itertools.pairwise(ids):
        weights["output.weight"][before, after] += 8.0
    weights["output.bias"][END] = -20.0
    model = TrainedModel("copyist", Checkpoint(configuration, vocabulary, {}, weights))
    return TextGenerator(model, CopyIndex.build([("text", TEXT)]))


def longest_copy(text: str, document: str = TEXT) -> int:
    return max(
        (b - a for a in range(len(text)) for b in range(a + 1, len(text) + 1) if text[a:b] in document), default=0
    )


METHODS: list[dict[str, Any]] = [
    {},
    {"top_k": 0},
    {"top_p": 0.9},
    {"greedy": True},
    {"repetition_penalty": 1.5},
    {"beam_width": 4},
    {"beam_width": 4, "greedy": True},
]


@pytest.mark.parametrize("method", METHODS, ids=str)
@pytest.mark.parametrize("most", [3, 6, 11])
def test_max_copy_limits_copies_with_every_method(most: int, method: dict[str, Any]) -> None:
    model = copyist()
    for prompt in ("", "the"):
        options = SamplingOptions(max_copy=most, length=150, random_seed=1, **method)
        generations = model.generate_batch(prompt, options, 3)
        free = model.generate_batch(prompt, replace(options, max_copy=None), 3)
        assert max(longest_copy(generation.text) for generation in generations) <= max(most, len(prompt))
        assert max(longest_copy(generation.text) for generation in free) > most
        assert all(generation.copied == 0 for generation in generations)
        assert [generation.text for generation in generations] == [
            model.generate(prompt, max_copy=most, length=150, random_seed=1 + number, **method)
            for number in range(3)
        ]


def test_max_copy_has_no_effect_on_text_without_copies() -> None:
    model = copyist()
    for method in METHODS:
        free = model.generate("the", length=90, **method)
        assert model.generate("the", length=90, max_copy=longest_copy(free) + 2, **method) == free


def test_max_copy_does_not_extend_a_copy_in_the_prompt() -> None:
    model = copyist()
    prompt = TEXT[:24]
    text = model.generate(prompt, length=2, max_copy=10, greedy=True)
    assert text[24:] != TEXT[24:26]
    assert model.generate(prompt, length=2, greedy=True)[24:] == TEXT[24:26]


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_an_unavoidable_copy_is_shortest_and_reported(method: dict[str, Any]) -> None:
    # One letter, and a document of nothing else: every continuation is a copy.
    vocabulary = NgramVocabulary.build(["a" * 200], min_count=1)
    configuration = Configuration(hidden=2)
    weights = {
        name: np.zeros(shape, np.float32) for name, shape in weight_shapes(configuration, len(vocabulary)).items()
    }
    weights["output.bias"][END] = -np.inf
    model = TextGenerator(
        TrainedModel("a", Checkpoint(configuration, vocabulary, {}, weights)), CopyIndex.build([("a", "a" * 200)])
    )
    [generation] = model.generate_batch("", SamplingOptions(max_copy=5, length=20, **method), 1)
    assert (generation.text, generation.copied) == ("a" * 20, 20)


def test_max_copy_needs_the_training_documents() -> None:
    with pytest.raises(UsageError, match="test does not include its training stories"):
        text_generator().generate(max_copy=20)


def test_max_copy_uses_the_run_that_was_loaded(trained: Run) -> None:
    generator = TextGenerator.load(None)
    index = CopyIndex.build((d.name, d.read().lower()) for d in trained.split().parts["train"])
    # Another run, whose corpus is missing, is the latest now.
    other = trained.path.with_name("other")
    shutil.copytree(trained.path, other)
    info = trained.info()
    info["corpus"]["source"] = "/missing.txt"
    (other / "run.json").write_text(json.dumps({**info, "order": info["order"] + 1}))
    assert registry.find().name == "other"
    lengths, _ = index.longest_at_each(generator.generate(length=300, max_copy=5))
    assert 3 <= lengths.max() <= 5


# --- log-probability, unknown parts of a prompt --------------------------------------------------------------


@pytest.mark.parametrize("kernel", ["plain", ""])
def test_log_probability_is_the_sum_over_ngrams(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRIMMGEN_KERNEL", kernel)
    model = text_generator({END: 0.0})
    for method in METHODS:
        for generation in model.generate_batch(
            "the ", SamplingOptions(length=40, random_seed=6, state="zeros", **method), 3
        ):
            stepper = Stepper(CONFIGURATION, model.checkpoint.weights, np.zeros((2, 1, 1, 5), np.float32))
            ids = [END, *model.vocabulary.encode("the ").tolist(), *generation.ids]
            total = 0.0
            for number, token in enumerate(ids):
                if number > 2:
                    p = np.exp(stepper.logits[0].astype(np.float64))
                    total += float(np.log(p[token] / p.sum()))
                stepper.step([token])
            assert model.vocabulary.decode(generation.ids) == generation.text[4:]
            assert model.log_probability(generation) == pytest.approx(total, abs=1e-3)


def test_log_probability_counts_only_visible_characters() -> None:
    model = text_generator({END: -99})
    # Only one bigram begins with k, so that its probability is 1.
    [sure] = model.generate_batch("the k", SamplingOptions(length=1), 1)
    assert model.log_probability(sure) == pytest.approx(0.0, abs=1e-6)
    stepper = Stepper(CONFIGURATION, model.checkpoint.weights, np.zeros((2, 1, 1, 5), np.float32))
    p = np.exp(log_probabilities(stepper.step([END])[0]))
    [cut] = model.generate_batch("", SamplingOptions(length=1, state="zeros", random_seed=4), 1)
    same = [i for i in range(2, len(p)) if model.vocabulary.token(i)[0] == cut.text]
    assert model.log_probability(cut) == pytest.approx(float(np.log(p[same].sum())), abs=1e-5)


def test_unknown_in_lists_characters_and_ngrams() -> None:
    model = text_generator()
    assert model.unknown_in("the king") == ([], [])
    assert model.unknown_in("thzk\u4e2dy the") == (["\u4e2d", "y"], ["zk"])


@pytest.mark.parametrize("prompt", ["", "t", "\u4e2d", "\U0001f98a", "zz" * 9, "the " * 9999])
def test_any_prompt_is_continued_with_every_method(prompt: str) -> None:
    model = copyist()
    for method in METHODS:
        text = model.generate(prompt, length=11, max_copy=9, **method)
        assert text.startswith(prompt)
        assert len(text) == len(prompt) + 11


@pytest.mark.parametrize("network", NETWORKS)
def test_every_network_generates_with_every_method(network: str) -> None:
    checkpoint = tiny_checkpoint(**NETWORKS[network])
    checkpoint.weights["output.bias"][END] = -99.0
    model = TextGenerator(TrainedModel("tiny", checkpoint), CopyIndex.build([("text", DOCUMENT)]))
    for method in METHODS:
        for most in (None, 5):
            generations = model.generate_batch("The k", SamplingOptions(length=20, max_copy=most, **method), 2)
            assert [len(generation.text) for generation in generations] == [25, 25]
            assert model.log_probability(generations[1]) < 0
