"""Words, byte pairs and n-grams behind one interface: round trips, pieces, JSON, prompts, and what is generated."""

from __future__ import annotations

import itertools
import json
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from grimmgen.configuration import Configuration, Normalisation
from grimmgen.errors import IntegrityError, UsageError
from grimmgen.evaluation.novelty import CopyIndex
from grimmgen.evaluation.static import EncodedDocument, encode_for_evaluation, evaluate
from grimmgen.evaluation.surprisal import surprisal
from grimmgen.network.backends.numpy import Stepper
from grimmgen.network.model import LanguageModel
from grimmgen.network.shapes import weight_shapes
from grimmgen.runs.checkpoint import Checkpoint
from grimmgen.runs.registry import TrainedModel
from grimmgen.sampling.generator import TextGenerator
from grimmgen.sampling.logits import log_probabilities
from grimmgen.sampling.options import SamplingOptions
from grimmgen.text import byte_pairs, encoding, pretokens
from grimmgen.text.ngrams import NgramVocabulary
from grimmgen.text.tokenizers import (
    BytePairVocabulary,
    WordVocabulary,
    build_vocabulary,
    vocabulary_from_json,
)
from grimmgen.text.vocabulary import END, UNKNOWN, Vocabulary
from tests.builders import random_tensors
from tests.pairs import pairs
from tests.test_encoding import ODD, Pieces

TEXT = "the king and the queen, the kingdom: \u201cthe king\u2019s\u201d\n\n  the end.\nthe king is thin.\n" * 3
TOKENS = ["char", "bigram", "ngram:3", "word", "bpe:40"]
every_tokenizer = pytest.mark.parametrize("tokens", TOKENS)
TEXTS = st.text(
    st.sampled_from(ODD + "  thekin,;\u0941\u093f\u200c") | st.characters(exclude_categories=["Cs"]), max_size=60
)
no_deadline = settings(deadline=None, max_examples=40)


def vocabulary_of(tokens: str, *texts: str, min_count: int = 2) -> Vocabulary:
    return build_vocabulary(texts or [TEXT], Configuration(tokens=tokens, min_count=min_count))


def model_of(tokens: str, scale: float = 0.5) -> TextGenerator:
    """Random weights; the end is improbable."""
    configuration = Configuration(tokens=tokens, min_count=2, hidden=4)
    vocabulary = build_vocabulary([TEXT], configuration)
    weights = random_tensors(weight_shapes(configuration, len(vocabulary)))
    weights = {name: (scale * weight).astype(np.float32) for name, weight in weights.items()}
    weights["output.bias"][END] = -99.0
    model = TrainedModel("test", Checkpoint(configuration, vocabulary, {}, weights))
    return TextGenerator(model, CopyIndex.build([("text", vocabulary.normalise(TEXT))]))


# --- cutting and encoding ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("the king's  \u201chouse\u201d", ["the", " king", "'", "s", " ", " \u201c", "house", "\u201d"]),
        ("a\n\n    b_1 = x[2]\n", ["a", "\n\n   ", " b_1", " =", " x", "[", "2", "]", "\n"]),
        (
            "\u0939\u093f\u0928\u094d\u0926\u0940 \u0e17\u0e35\u0e48",
            ["\u0939\u093f\u0928\u094d\u0926\u0940", " \u0e17\u0e35\u0e48"],
        ),
        ("a" * 40, ["a" * 32, "a" * 8]),
        ("", []),
    ],
)
def test_pretokens_are_words_punctuation_and_white_space(text: str, expected: list[str]) -> None:
    assert pretokens.split(text) == expected


@settings(deadline=None, max_examples=100)
@given(TEXTS, TEXTS)
@example("a" + " " * 70, "b")
@example("a" * 70, " b")
@example("x\u0301" * 40, "y")
def test_what_follows_changes_the_last_pretoken_only(text: str, more: str) -> None:
    parts = pretokens.split(text)
    assert "".join(parts) == text
    assert pretokens.last_begin(text) == len("".join(parts[:-1]))
    assert pretokens.split(text + more)[: max(0, len(parts) - 1)] == parts[:-1]


@no_deadline
@given(TEXTS, st.integers(1, 9), st.sampled_from(["word", "bpe:99"]))
@example("\u4ece\u524d\u6709\u4e00\u4e2a\u56fd\u738b" * 9, 4, "word")
def test_pieces_are_counted_and_encoded_as_the_whole(text: str, size: int, tokens: str) -> None:
    texts = [TEXT, text]
    whole = vocabulary_of("bpe:999" if tokens == "bpe:99" else tokens, *texts)
    pieced = build_vocabulary(
        [Pieces(one, size) for one in texts], Configuration(tokens=whole.tokens, min_count=2)
    )
    assert pieced == whole
    parts = list(encoding.encode(Pieces(text, size), whole))
    assert np.concatenate(parts).tolist() == whole.encode(text).tolist()


@every_tokenizer
@no_deadline
@given(text=TEXTS)
def test_tokens_are_the_text(tokens: str, text: str) -> None:
    vocabulary = (
        vocabulary_of(tokens, TEXT + text, min_count=1)
        if tokens[:3] != "bpe"
        else vocabulary_of("bpe:999", TEXT + text)
    )
    ids, costs, characters = vocabulary.encode_with_costs(text)
    assert (
        vocabulary.decode(ids)
        == "".join(vocabulary.cut(vocabulary.normalise(text), ids))
        == vocabulary.normalise(text)
    )
    assert not costs.any()
    assert characters == len(vocabulary.normalise(text))


@every_tokenizer
def test_unknown_characters_cost_what_it_takes_to_spell_them(tokens: str) -> None:
    vocabulary = vocabulary_of(tokens)
    text = "the z\u4e2d king"
    ids, costs, _ = vocabulary.encode_with_costs(text)
    assert ((costs > 0) == (ids == UNKNOWN)).all()
    assert "".join(vocabulary.cut(text, ids)) == text
    assert vocabulary.unseen(text) == ["z", "\u4e2d"]
    if tokens not in ("char", "bigram", "ngram:3"):
        assert costs[costs > 0].tolist() == [math.log(0x110000)] * 2
        assert vocabulary.unknown_share == 0.0


def test_rare_words_are_spelt() -> None:
    vocabulary = vocabulary_of("word", "the king and the king; a thin queen")
    assert isinstance(vocabulary, WordVocabulary)
    assert {text for text in vocabulary.texts if len(text) > 1} == {" king"}
    ids = vocabulary.encode("the king thin")
    assert vocabulary.cut("the king thin", ids) == [*"the", " king", *" thin"]
    assert vocabulary.spelt("the king") == (1, 2)
    counts = dict(zip(vocabulary.texts, vocabulary.counts, strict=True))
    assert (counts[" king"], counts["k"], counts["q"], counts[";"]) == (2, 0, 1, 1)


def reference_byte_pairs(counted: dict[str, int], most: int, min_count: int) -> list[str]:
    """Learn byte pairs by counting all pairs again after each."""
    words = {word: [*word] for word in counted}
    learnt: list[str] = []
    while len(learnt) < most:
        pairs = Counter[str]()
        for word, parts in words.items():
            for left, right in itertools.pairwise(parts):
                if len(left + right) <= byte_pairs.LONGEST:
                    pairs[left + right] += counted[word]
        ranked = sorted((-count, pair) for pair, count in pairs.items() if count >= min_count)
        if not ranked:
            break
        learnt.append(ranked[0][1])
        ranks = {text: rank for rank, text in enumerate(learnt)}
        for parts in words.values():
            byte_pairs.join(parts, ranks)
    return learnt


@no_deadline
@given(
    st.dictionaries(st.text("abc ", min_size=1, max_size=9), st.integers(1, 5), max_size=12), st.integers(0, 12)
)
@example({"aaaa": 3, "aaa": 1, "abab": 2}, 9)
def test_byte_pairs_equal_the_reference(counted: dict[str, int], most: int) -> None:
    assert byte_pairs.learn(counted, most, 2) == reference_byte_pairs(counted, most, 2)


@no_deadline
@given(st.text("thekin ,", max_size=40))
def test_byte_pairs_are_joined_as_they_were_learnt(text: str) -> None:
    vocabulary = vocabulary_of("bpe:999", TEXT + text)
    counts = Counter(vocabulary.cut(vocabulary.normalise(TEXT + text), vocabulary.encode(TEXT + text)))
    assert {t: c for t, c in zip(vocabulary.texts, vocabulary.counts, strict=True) if c} == counts


def test_the_size_of_byte_pairs_bounds_the_vocabulary() -> None:
    assert len(vocabulary_of("bpe:40")) == 40
    with pytest.raises(
        UsageError, match="--tokens bpe:8 is too small for 22 different characters: give bpe:24 or more"
    ):
        vocabulary_of("bpe:8")
    assert len(vocabulary_of("bpe:24")) == 24
    # No more pairs occur often enough.
    assert len(vocabulary_of("bpe:9999")) < 200


@pytest.mark.parametrize("tokens", ["word", "bpe:99"])
def test_order_of_documents_does_not_change_the_vocabulary(tokens: str) -> None:  # fault 23
    texts = ["the king, the hen", "a hen and a king", "then the end", "zz"]
    assert vocabulary_of(tokens, *texts) == vocabulary_of(tokens, *reversed(texts))
    with pytest.raises(UsageError, match="the training stories are empty"):
        vocabulary_of(tokens, "", "")


def test_rare_pretokens_of_a_vast_text_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [f"the king {number:x}\n" for number in range(300)]
    exact = vocabulary_of("word", *texts)
    monkeypatch.setattr(pretokens, "_MOST_COUNTED", 50)
    assert vocabulary_of("word", *texts) == exact  # all that are dropped occur once


def test_ids_beyond_65535_are_kept() -> None:
    texts = [chr(0x4E00 + i // 256) + chr(0xAC00 + i % 256) for i in range(65_600)]
    words = vocabulary_of("word", " ".join(texts), min_count=1)
    assert words.id_type is np.int32
    last = words.token(len(words) - 1)
    [ids] = [part for part in encoding.encode(last, words) if len(part)]
    assert ids.dtype == np.int32
    assert ids.tolist() == [len(words) - 1]
    assert len(words) > 65_536


# --- JSON ----------------------------------------------------------------------------------------------------


@every_tokenizer
@pytest.mark.parametrize(
    "normalisation", [Normalisation(), Normalisation(False, "space"), Normalisation(language="tr")]
)
def test_vocabularies_survive_json(tokens: str, normalisation: Normalisation) -> None:
    options = Configuration(tokens=tokens, min_count=2, **normalisation._asdict())
    vocabulary = build_vocabulary([TEXT], options)
    read = vocabulary_from_json(json.loads(json.dumps(vocabulary.to_json())))
    assert read == vocabulary
    assert read.tokens == tokens
    assert read.encode(TEXT).tolist() == vocabulary.encode(TEXT).tolist()


def stored(tokens: str) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(json.dumps(vocabulary_of(tokens).to_json()))
    return value


def changed(**parts: Any) -> Callable[[dict[str, Any]], object]:
    return lambda value: value | parts


def texts_changed(change: Callable[[list[Any]], Any]) -> Callable[[dict[str, Any]], object]:
    def damage(value: dict[str, Any]) -> object:
        texts = list(value["texts"])
        return value | {"texts": change(texts)}

    return damage


DAMAGES: list[Callable[[dict[str, Any]], object]] = [
    *(lambda value, part=part: {k: v for k, v in value.items() if k != part} for part in
      ("lower", "newlines", "min_count", "texts", "counts")),
    *(changed(tokens=tokens) for tokens in (None, 3, "", "words", "char", "bpe", "bpe:09", "bpe:3", ["word"])),
    *(changed(lower=value) for value in (0, "true", None)),
    *(changed(newlines=how) for how in ("drop", None, "Keep")),
    *(changed(min_count=count) for count in (0, -1, 1.0, True, "2", None)),
    *(changed(language=code) for code in ("xx", 1, 2.0)),
    *(changed(counts=counts) for counts in ([], None, "x", [1])),
    changed(texts=[], counts=[]),
    texts_changed(lambda texts: texts[:-1]),
    texts_changed(lambda texts: [*texts, "the"]),
    texts_changed(lambda texts: texts[::-1]),
    texts_changed(lambda texts: [*texts[:-1], texts[0]]),
    texts_changed(lambda texts: [*texts[:-1], ""]),
    texts_changed(lambda texts: [*texts[:-1], 7]),
    texts_changed(lambda texts: [*texts[:-1], ["a"]]),
    texts_changed(lambda texts: [*texts[:-1], "\u4e2d\u6587"]),
    texts_changed(lambda texts: [*texts[:-1], "the king"]),
    texts_changed(lambda texts: [*texts[:-1], "t" * 99]),
    lambda value: value | {"counts": [-1, *value["counts"][1:]]},
    lambda value: value | {"counts": [True, *value["counts"][1:]]},
    lambda value: value | {"counts": [1.0, *value["counts"][1:]]},
    lambda value: value | {"counts": [10**9, *value["counts"]]},
]  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_vocabularies_are_refused(damage: Callable[[dict[str, Any]], object]) -> None:
    # Faults 22 and 26.
    for tokens in ("word", "bpe:40"):
        with pytest.raises(IntegrityError, match="copy the file again, or train again") as caught:
            vocabulary_from_json(damage(stored(tokens)))
        assert "\n" not in str(caught.value)


def test_undamaged_vocabularies_are_accepted() -> None:
    for tokens in ("word", "bpe:40"):
        assert vocabulary_from_json(stored(tokens)).to_json() == stored(tokens)
    others: list[object] = [None, [], "word", 3, {}, {"tokens": None}, {"tokens": "word"}]
    for value in others:
        with pytest.raises(IntegrityError):
            vocabulary_from_json(value)


@every_tokenizer
def test_checkpoints_keep_the_vocabulary(tokens: str, tmp_path: Any) -> None:
    checkpoint = model_of(tokens).checkpoint
    checkpoint.write(tmp_path / "x.safetensors")
    assert Checkpoint.read(tmp_path / "x.safetensors").vocabulary == checkpoint.vocabulary
    other = "word" if tokens != "word" else "bigram"
    configuration = Configuration(tokens=other, min_count=2, hidden=4)
    replace(checkpoint, configuration=configuration).write(tmp_path / "y.safetensors")
    with pytest.raises(IntegrityError, match="the vocabulary and the configuration differ in tokens"):
        Checkpoint.read(tmp_path / "y.safetensors")


# --- prompts and generation ----------------------------------------------------------------------------------


def readings(vocabulary: Vocabulary, prompt: str) -> set[tuple[str, ...]]:
    """The ways to read the end of a prompt: the complete tokens, and the beginning of the next one."""
    ids, ends = vocabulary.read_prompt(prompt)
    return {(*map(vocabulary.token, [*ids, *end.ids]), end.prefix) for end in ends}


def test_the_end_of_a_prompt_is_read_in_all_ways() -> None:
    words, pairs = vocabulary_of("word"), vocabulary_of("bpe:40")
    assert readings(words, "the ki") == {("the", " ki"), ("the", " ", "k", "i", "")}
    assert readings(words, "the qz") == {("the", " ", "q", "<unk>", "")}
    assert readings(words, "the  ") == {("the", " ", " "), ("the", " ", " ", "")}
    assert readings(words, "the\n") == {("the", "\n")}
    assert readings(words, "") == readings(pairs, "") == {("",)}
    assert {" the", "\u201c"} <= {*pairs.texts}
    assert readings(pairs, "the t") >= {(*map(pairs.token, pairs.encode("the")), " t")}
    assert readings(vocabulary_of("bigram"), "the k") == {("th", "e ", "k")}
    assert readings(vocabulary_of("bigram"), "the kz") == {("th", "e ", "<unk>", "")}


@pytest.mark.parametrize("tokens", ["word", "bpe:40"])
@pytest.mark.parametrize("prompt", ["the ki", "the king", "the  ", "the king\u2019", "a", "\n\n "])
def test_one_of_the_readings_is_how_the_text_is_encoded(tokens: str, prompt: str) -> None:
    vocabulary = vocabulary_of(tokens)
    for more in ("", "n", "ng", "ngdom", " the", ", the", "\n", "zz", "\u2019s", ".\u201d"):
        whole = vocabulary.cut(prompt + more, vocabulary.encode(prompt + more))
        ways = []
        ids, ends = vocabulary.read_prompt(prompt)
        texts = vocabulary.cut(prompt, np.array(ids, np.int32))
        for end in ends:
            read = [*texts, *map(vocabulary.token, end.ids)]
            following = whole[len(read) :]
            ways.append(whole[: len(read)] == read and "".join(following).startswith(end.prefix))
        assert any(ways), more


PROMPTS = ["", "the ki", "the king", "the ", "t", "zz\u4e2d", "The KING\u2019", "\n"]
METHODS: list[dict[str, Any]] = [{}, {"beam_width": 3}, {"greedy": True}, {"top_p": 0.9}, {"max_copy": 9}]


@pytest.mark.parametrize(("tokens", "prompt", "method"), pairs(TOKENS, PROMPTS, METHODS), ids=str)
def test_prompts_are_continued(tokens: str, prompt: str, method: dict[str, Any]) -> None:  # fault 41
    model = model_of(tokens)
    options = SamplingOptions(length=23, random_seed=3, **method)
    texts = [generation.text for generation in model.generate_batch(prompt, options, 2)]
    start = model.vocabulary.normalise(prompt)
    assert all(text.startswith(start) and len(text) == len(start) + 23 for text in texts)
    assert texts == [model.generate(prompt, length=23, random_seed=seed, **method) for seed in (3, 4)]


def test_readings_are_sampled_in_proportion() -> None:
    model = model_of("bpe:40", scale=1.0)
    prompt, count = "the t", 600
    _, ends = model.vocabulary.read_prompt(prompt)
    assert len(ends) > 1
    options = SamplingOptions(length=1, random_seed=1, top_k=0, state="zeros")
    chosen = Counter(tuple(generation.context) for generation in model.generate_batch(prompt, options, count))
    weights = {}
    for end in ends:
        ids, _ = model.vocabulary.read_prompt(prompt)
        state = np.zeros((2, 1, 1, 4), np.float32)
        stepper = Stepper(model.checkpoint.configuration, model.checkpoint.weights, state)
        log_p, p = log_probabilities(stepper.read(np.array([END, *ids])[:, None])[0]), 1.0
        for token in end.ids:
            p *= math.exp(log_p[token])
            log_p = log_probabilities(stepper.step([token])[0])
        p *= math.fsum(np.exp(log_p[model.vocabulary.starting_with(end.prefix)])) if end.prefix else 1.0
        weights[END, *ids, *end.ids] = p
    for context, weight in weights.items():
        share = weight / sum(weights.values())
        assert chosen[context] / count == pytest.approx(share, abs=4 * math.sqrt(0.25 / count))


@every_tokenizer
def test_log_probability_is_that_of_the_tokens(tokens: str) -> None:
    model = model_of(tokens)
    [generation] = model.generate_batch("", SamplingOptions(length=40, random_seed=6, state="zeros", top_k=0), 1)
    state = np.zeros((2, 1, 1, 4), np.float32)
    stepper = Stepper(model.checkpoint.configuration, model.checkpoint.weights, state)
    logits, total = stepper.step([END])[0], 0.0
    for token in generation.ids[:-1]:
        total += float(log_probabilities(logits)[token])
        logits = stepper.step([token])[0]
    assert model.log_probability(generation) <= total
    assert model.log_probability(generation) >= total + float(log_probabilities(logits)[generation.ids[-1]]) - 1e-3


# --- evaluation ----------------------------------------------------------------------------------------------


@every_tokenizer
def test_surprisals_sum_to_the_score(tokens: str) -> None:
    checkpoint = model_of(tokens).checkpoint
    text = TEXT[:99] + "zz\u4e2d"
    found = surprisal(checkpoint, text)
    assert "".join(token.text for token in found) == text
    model = LanguageModel(checkpoint.configuration, len(checkpoint.vocabulary))
    model.load_weights(checkpoint.weights)
    total = evaluate(model, encode_for_evaluation([("", text)], checkpoint.vocabulary)).total
    assert sum(token.bits for token in found) == pytest.approx(total.bits, rel=1e-5)
    assert total.characters == len(text)


@every_tokenizer
@pytest.mark.parametrize("limit", [1, 2, 7, 10**6])
def test_a_document_is_cut_at_a_number_of_tokens(tokens: str, limit: int) -> None:
    vocabulary = vocabulary_of(tokens)
    text = TEXT[:101] + "z"
    ids, costs, characters = vocabulary.encode_with_costs(text)
    cut = EncodedDocument.encode("", text, vocabulary, limit, exact=True)
    assert cut.ids.tolist() == ids[:limit].tolist()
    assert cut.characters == sum(map(len, vocabulary.cut(text, ids)[:limit])) <= characters
    assert cut.spelling == pytest.approx(costs[:limit].sum())


def test_each_tokenizer_has_its_vocabulary() -> None:
    kinds = {tokens: type(vocabulary_of(tokens)) for tokens in TOKENS}
    assert kinds == {
        **dict.fromkeys(("char", "bigram", "ngram:3"), NgramVocabulary),
        "word": WordVocabulary,
        "bpe:40": BytePairVocabulary,
    }
