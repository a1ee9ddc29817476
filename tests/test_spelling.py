"""Spelling with known words: the lexicon of a training set, and what it leaves of the tokens of any tokenizer."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from grimmgen.configuration import Configuration, Normalisation
from grimmgen.errors import UsageError
from grimmgen.network.shapes import weight_shapes
from grimmgen.runs import registry
from grimmgen.runs.checkpoint import Checkpoint
from grimmgen.runs.registry import Run, TrainedModel
from grimmgen.sampling.generator import TextGenerator
from grimmgen.sampling.logits import Logits
from grimmgen.sampling.spelling import Speller, Spelling
from grimmgen.text.batches import RaggedIds
from grimmgen.text.lexicon import lexicon
from grimmgen.text.tokenizers import build_vocabulary
from grimmgen.text.vocabulary import END, UNKNOWN, Vocabulary
from grimmgen.training.text import DECODING, TrainingText
from tests.builders import random_tensors

TEXT = "the king's thin hen, and the kin: «a king» is thinner than a hen!\nनमस्ते दुनिया.\n"
WORDS = lexicon([TEXT * 2], Normalisation())
LETTERS = re.compile(r"[a-z\u0900-\u097f]+")
PREFIXES = {word[:n] for word in WORDS for n in range(1, len(word) + 1)}
TOKENIZERS = ["char", "bigram", "ngram:3", "word", "bpe:40"]


def vocabulary_of(tokens: str) -> Vocabulary:
    return build_vocabulary([TEXT * 2], Configuration(tokens=tokens, min_count=1))


def model(tokens: str, **provenance: Any) -> TextGenerator:
    """A model with random weights, which would misspell most words."""
    configuration = Configuration(tokens=tokens, min_count=1, hidden=4)
    vocabulary = vocabulary_of(tokens)
    weights = random_tensors(weight_shapes(configuration, len(vocabulary)))
    weights["output.bias"][END] = -99.0
    return TextGenerator(TrainedModel("test", Checkpoint(configuration, vocabulary, provenance, weights)))


def misspelt(text: str) -> list[str]:
    """The words of a text that the lexicon does not have, without the last one, which may be incomplete."""
    return [word for word in LETTERS.findall(re.sub(rf"{LETTERS.pattern}$", "", text)) if word not in WORDS]


# --- the lexicon -----------------------------------------------------------------------------------------------------


def test_words_are_letters_and_their_marks() -> None:
    assert sorted("a and hen is kin king s than the thin thinner नमस्ते दुनिया".split()) == WORDS


def test_words_are_counted_across_pieces_as_the_model_reads_them() -> None:
    assert lexicon(["The KING the king"] * 2, Normalisation(lower=False)) == ["KING", "The", "king", "the"]
    assert lexicon(["The KING the king"], Normalisation()) == ["king", "the"]


@pytest.mark.parametrize(
    "text", ["anna ben clara dora", "王様は古い家に住んでいた。娘は森へ行った。", "", "12 34"]
)
def test_there_is_no_lexicon_where_most_words_are_new(text: str) -> None:
    assert lexicon([text], Normalisation()) == []


def test_checkpoints_keep_the_words_and_how_to_sample(trained: Run) -> None:
    provenance = registry.load_model(trained.name).checkpoint.provenance
    texts = [document.read() for document in trained.split().parts["train"]]
    assert provenance["lexicon"].split() == lexicon(texts, trained.configuration.normalisation)
    assert provenance["decoding"] == {**DECODING, "lexicon": True}


@pytest.mark.parametrize(
    ("options", "is_tutorial"),
    [({}, True), ({"tokens": "char", "epochs": 3, "min_count": 1}, True), ({"hidden": 64}, False)],
)
def test_the_tutorials_network_is_sampled_as_in_the_tutorial(options: dict[str, Any], is_tutorial: bool) -> None:
    configuration = Configuration(**options)
    ids = RaggedIds.of_lengths(np.array([2, 3, 2]), np.array([[3]]))
    text = TrainingText(vocabulary_of("char"), ids, [], 1, WORDS)
    assert configuration.is_tutorial == is_tutorial
    assert (text.provenance(configuration)["decoding"] == {}) == is_tutorial
    # Short documents end by themselves.
    assert text.provenance(configuration)["lengths"] == []


# --- misspellings ----------------------------------------------------------------------------------------------------


def completable(beginning: str, vocabulary: Vocabulary) -> bool:
    """Whether tokens can complete some word, by trying all."""
    if beginning in WORDS:
        return True
    for token in vocabulary.texts:
        first = re.match(f"(?:{LETTERS.pattern})?", token)
        assert first
        longer = beginning + first[0]
        if first[0] != token and longer in WORDS:
            return True
        if first[0] == token and longer in PREFIXES and completable(longer, vocabulary):
            return True
    return False


@pytest.mark.parametrize("tokens", TOKENIZERS)
@pytest.mark.parametrize("word", ["", "th", "thin", "kin", "hen", "नम"])
def test_misspellings_are_those_of_a_plain_search(tokens: str, word: str) -> None:
    vocabulary = vocabulary_of(tokens)
    speller = Speller(WORDS, vocabulary)
    beginnings = {"", *(b for b in PREFIXES if completable(b, vocabulary))}
    if word not in beginnings:
        # The trigrams that would complete it are cut at other places.
        assert (tokens, word) == ("ngram:3", "नम")
        return
    wrong = [UNKNOWN]
    for token in range(END, len(vocabulary)):
        # A stop stands for the end of the story, which is that of a word.
        text = word + (vocabulary.decode([token]) if token != END else ".")
        *whole, last = re.split(r"[^a-z\u0900-\u097f]+", text)
        if not {*whole} <= {*WORDS, ""} or last not in beginnings:
            wrong.append(token)
    assert speller.misspellings(word).tolist() == wrong


def test_a_word_of_the_prompt_may_be_any() -> None:
    vocabulary = vocabulary_of("bigram")
    speller = Speller(WORDS, vocabulary)
    assert speller.last_word("the king's hat") == "hat"
    # Of a word that is not known, only what comes after it is checked.
    right = {*range(len(vocabulary))} - {*speller.misspellings("hat").tolist()}
    assert {"th", "in", "'s"} <= {vocabulary.decode([token]) for token in right}


def test_where_no_token_is_right_all_are() -> None:
    vocabulary = vocabulary_of("bigram")
    logits: Logits = np.full(len(vocabulary), -np.inf, np.float32)
    logits[vocabulary.starting_with("th")] = 0.0
    for word, kept in (("thin", logits), ("", logits)):
        assert Spelling(Speller(WORDS, vocabulary), word).apply(logits).tolist() == kept.tolist()


def test_no_word_is_begun_that_tokens_cannot_complete() -> None:
    # "hin" ends in a token that no other one continues to "hinges".
    vocabulary = vocabulary_of("ngram:3")
    token = vocabulary.texts.index("hin") + 2
    assert token in Speller(["hinges"], vocabulary).misspellings("")
    assert token not in Speller(["hinges", "hinand"], vocabulary).misspellings("")


# --- generation ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokens", TOKENIZERS)
def test_only_known_words_are_written(tokens: str) -> None:
    teller = model(tokens, lexicon=" ".join(WORDS))
    options = {"length": 120, "top_k": 0}
    assert misspelt(teller.generate("", random_seed=1, **options))
    texts = [teller.generate("", lexicon=True, random_seed=seed, **options) for seed in range(5)]
    assert [misspelt(text) for text in texts] == [[]] * 5
    assert len({*texts}) == 5


def test_a_prompt_is_continued_whatever_its_words() -> None:
    teller = model("bigram", lexicon=" ".join(WORDS))
    for prompt, rest in (("the thi", "thi"), ("qqq th", "th"), ("the hihihi", "")):
        text = teller.generate(prompt, length=60, top_k=0, lexicon=True, random_seed=3)
        assert text.startswith(prompt)
        if rest:
            assert misspelt(text[len(prompt) - len(rest) :]) == []


def test_beams_and_copy_limits_know_the_lexicon_or_refuse_it() -> None:
    with pytest.raises(UsageError, match="--lexicon has no effect with --beam-width"):
        model("bigram").options(lexicon=True, beam_width=3)


@pytest.mark.parametrize("stored", [None, "", 7, [1], "x" * 100_000])
def test_a_checkpoint_without_a_lexicon_is_an_error(stored: object) -> None:
    teller = model("bigram", lexicon=stored)
    with pytest.raises(UsageError, match="no lexicon"):
        teller.start("", teller.options(lexicon=True))
