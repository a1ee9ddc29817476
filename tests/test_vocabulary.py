"""The vocabulary, compared with the plain reference in `tests.reference_encoding`."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from grimmgen.configuration import Newlines, Normalisation
from grimmgen.errors import IntegrityError, UsageError
from grimmgen.text.ngrams import NgramVocabulary
from grimmgen.text.normalisation import normalise
from grimmgen.text.vocabulary import END, UNKNOWN
from tests import reference_encoding
from tests.reference_encoding import ReferenceVocabulary

# Few characters, so that n-grams repeat, among them such that change their length, are composed or are often lost.
ODD = "ab AB\0\r\n\t\u2028\ufeffe\u0301\u0130\u03a3\u1e9e\u212b\U0001f469\u200d\U0001f680"
# Without lone surrogates, which are not Unicode text; `test_lone_surrogate_is_an_unseen_character` has them.
TEXTS = st.text(st.sampled_from(ODD) | st.characters(exclude_categories=["Cs"]), max_size=40)
NGRAMS = st.integers(1, 4)
NEWLINES: st.SearchStrategy[Newlines] = st.sampled_from(["keep", "space"])
# No deadline, so that a busy machine does not fail the test.
no_deadline = settings(deadline=None)


@no_deadline
@given(st.lists(TEXTS, max_size=4), TEXTS, NGRAMS, st.integers(1, 3), st.booleans(), NEWLINES, st.booleans())
@example(["ab", "ab\0"], "abab\0\0", 3, 1, True, "keep", False)  # a shorter last n-gram differs from one with NUL
@example(["\u0130stanbul"], "\u0130", 1, 1, True, "keep", False)  # one character whose lower case is two
@example(["e\u0301"], "\u00e9", 1, 1, False, "keep", False)
@example(["abababcdcdefghg"], "cdg", 2, 3, False, "keep", False)  # unknown n-grams with one and more occurrences
@example([], "a", 1, 1, False, "keep", False)
@example(["aa", "b"], "c" * 9, 4, 1, False, "keep", False)
@example(["a", "ab", ""], "b", 2, 1, False, "keep", True)  # a phase that skips the whole text
@example(["ababa\r\nb"], "a\nb\rc", 2, 2, False, "space", True)
def test_vocabulary_equals_the_reference(
    texts: list[str], probe: str, n: int, min_count: int, lower: bool, newlines: Newlines, phases: bool
) -> None:
    reference = ReferenceVocabulary(texts, n, min_count, lower, newlines, phases)
    if not reference.kept:
        with pytest.raises(UsageError, match="give more text"):
            NgramVocabulary.build(texts, n, min_count, Normalisation(lower, newlines), phases)
        return
    vocabulary = NgramVocabulary.build(texts, n, min_count, Normalisation(lower, newlines), phases)
    assert list(zip(vocabulary.texts, vocabulary.counts, strict=True)) == list(reference.kept.items())
    assert list(vocabulary.alphabet) == reference.alphabet
    assert dict(vocabulary.unknown_characters) == reference.unknown_characters
    assert len(vocabulary) == len(reference.kept) + 2
    for text in [*texts, probe]:
        ids, costs, characters = vocabulary.encode_with_costs(text)
        assert ids.dtype == np.int32
        assert ids.tolist() == reference.encode(text)
        for phase in range(n):
            encoded = vocabulary.encode(text, phase)
            assert encoded.dtype == np.int32
            assert encoded.tolist() == reference.encode(text, phase)
        assert characters == len(reference.normalise(text))
        assert costs.tolist() == pytest.approx([reference.cost(gram) for gram in reference.cut(text)])
        assert [cost > 0 for cost in costs] == [i == UNKNOWN for i in ids]
    unseen = [c for c in dict.fromkeys(reference.normalise(probe)) if c not in reference.alphabet]
    assert vocabulary.unseen(probe) == unseen


@no_deadline
@given(st.lists(TEXTS.filter(bool), min_size=1, max_size=4), NGRAMS, st.booleans())
def test_decode_inverts_encode(texts: list[str], n: int, lower: bool) -> None:
    vocabulary = NgramVocabulary.build(texts, n, 1, Normalisation(lower))
    for text in texts:
        ids = vocabulary.encode(text)
        assert (
            vocabulary.decode(ids)
            == "".join(map(vocabulary.token, ids))
            == reference_encoding.normalise(text, lower)
        )
        assert vocabulary.decode([END, *ids, UNKNOWN]) == vocabulary.decode(ids)


@no_deadline
@given(TEXTS, st.booleans(), NEWLINES)
@example("a\r\n\u0301\n\rb", True, "space")
def test_normalise_is_idempotent(text: str, lower: bool, newlines: Newlines) -> None:
    options = Normalisation(lower, newlines)
    once = normalise(text, options)
    assert normalise(once, options) == once == reference_encoding.normalise(text, lower, newlines)
    assert "\r" not in once
    assert newlines == "keep" or "\n" not in once


def test_phases_are_counted_and_encoded() -> None:
    # The two phases are th|et|he and he|th|e.
    vocabulary = NgramVocabulary.build(["thethe"], 2, 1, phases=True)
    assert dict(zip(vocabulary.texts, vocabulary.counts, strict=True)) == {"he": 2, "et": 1, "th": 2, "e": 1}
    assert [vocabulary.decode(vocabulary.encode("thethe", phase)) for phase in (0, 1)] == ["thethe", "hethe"]


def test_newlines_can_be_replaced_by_spaces() -> None:
    vocabulary = NgramVocabulary.build(["the\r\nking\nthe king"], 1, 1, Normalisation(newlines="space"))
    assert vocabulary.alphabet == " eghiknt"
    assert vocabulary.encode("e\nk").tolist() == vocabulary.encode("e k").tolist()
    assert vocabulary.normalise("The\rking") == "the king"
    assert "\n" in NgramVocabulary.build(["the\nking"], 1, 1).alphabet


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a\r\nb\rc\n\r\nd", "a\nb\nc\n\nd"),
        ("E\u0301", "\u00e9"),
        ("\u0130", "i\u0307"),
        ("\u039f\u03a3", "\u03bf\u03c2"),
        ("\u212b", "\u00e5"),
        ("\0\u2028\ufeff\x85", "\0\u2028\ufeff\x85"),
    ],
)
def test_normal_form_of_special_characters(text: str, expected: str) -> None:  # fault 20
    assert normalise(text) == expected


def test_turkish_has_lower_case_rules_of_its_own() -> None:
    turkish = Normalisation(language="tr")
    text = "ISPARTA, \u0130ZM\u0130R, I\u0307zmir; k\u0131z"
    assert normalise(text, turkish) == "\u0131sparta, izmir, izmir; k\u0131z"
    vocabulary = NgramVocabulary.build([text], 1, 1, turkish)
    assert vocabulary.decode(vocabulary.encode("\u0130I")) == "i\u0131"
    assert NgramVocabulary.from_json(vocabulary.to_json()).normalisation == turkish
    assert normalise("STRASSE stra\u00dfe \u1e9e", turkish) == "strasse stra\u00dfe \u00df"


@pytest.mark.parametrize("n", range(1, 5))
def test_table_and_sorted_keys_give_the_reference_ids(n: int) -> None:
    # With 100 characters, a table of all keys is small enough up to trigrams.
    generator = np.random.default_rng(n)
    characters = [chr(c) for c in range(0x4E00, 0x4E00 + 100)]
    text = "".join(generator.choice(characters[:3] * 40 + characters, 3000))
    vocabulary = NgramVocabulary.build([text], n, 2, Normalisation(lower=False))
    reference = ReferenceVocabulary([text], n, 2, False)
    probe = text[1:] + "".join(generator.choice([*characters[:3] * 30, "?", "\0", "\U0010ffff"], 1001))
    assert vocabulary.encode(probe).tolist() == reference.encode(probe)
    assert len(set(reference.encode(probe))) > 10


def test_only_characters_of_the_training_set_are_known() -> None:
    characters = "".join(chr(c) for c in range(0x30000) if not 0xD800 <= c < 0xE000)
    vocabulary = NgramVocabulary.build(["az\u4e00\U0001f600"], 1, 1)
    known = {vocabulary.token(i) for i in vocabulary.encode(characters) if i != UNKNOWN}
    assert known == {*"az\u4e00\U0001f600"}
    assert np.count_nonzero(vocabulary.encode(characters)) == 6  # with A and Z, whose lower case is known


def test_ids_are_ordered_by_frequency_then_code_point() -> None:
    # The order of UTF-16 units would put the emoji before U+FFFF.
    vocabulary = NgramVocabulary.build(
        ["zz" * 3 + "bb" * 2 + "\U0001f600." * 2 + "\uffff." * 2 + "aa" * 2 + "once"], 2, 2
    )
    assert vocabulary.texts == ("zz", "aa", "bb", "\uffff.", "\U0001f600.")
    assert vocabulary.counts == (3, 2, 2, 2, 2)
    assert [vocabulary.token(i) for i in range(3)] == ["<unk>", "<end>", "zz"]


def test_spelling_cost_is_the_sum_over_characters() -> None:
    vocabulary = NgramVocabulary.build(["aaaaabc"], 2, 2)  # aa twice; ab and c are unknown, c with an empty place
    assert vocabulary.unknown_characters == (("", 1), ("a", 1), ("b", 1), ("c", 1))
    ids, costs, characters = vocabulary.encode_with_costs("AAabz")
    assert (ids.tolist(), characters) == ([2, 0, 0], 5)
    # The total is four unknown places, and one for each of three characters, the empty place and all others.
    assert costs.tolist() == pytest.approx([0, 2 * math.log(9 / 2), math.log(9 * 0x110000) + math.log(9 / 2)])


@no_deadline
@given(st.lists(TEXTS.filter(bool), min_size=1, max_size=3), NGRAMS, TEXTS)
def test_spelling_probabilities_sum_to_one(texts: list[str], n: int, probe: str) -> None:
    vocabulary = NgramVocabulary.build([*texts, "ab" * 12 * n], n, 3)
    escapes = {round(vocabulary.spelling_cost(c), 9) for c in [*vocabulary.unseen(probe), "\U0010fffd"]}
    assert len(escapes) == 1, "all unseen characters have the same cost"
    escape = math.exp(-(escapes.pop() - math.log(0x110000)))
    seen = (math.exp(-vocabulary.spelling_cost(c)) for c in [*vocabulary.alphabet, ""])
    assert math.fsum([*seen, escape]) == pytest.approx(1)


def test_unknown_share_is_that_of_the_training_set() -> None:
    for text, n in ("aaaaabc", 2), ("aaaaaabcdea", 3):
        vocabulary = NgramVocabulary.build([text, text[:-1]], n, 3)
        ids = np.concatenate([vocabulary.encode(text), vocabulary.encode(text[:-1])])
        assert vocabulary.unknown_share == pytest.approx(np.mean(ids == UNKNOWN))
        assert 0 < vocabulary.unknown_share < 1


def test_lone_surrogate_is_an_unseen_character() -> None:
    vocabulary = NgramVocabulary.build(["caf\u00e9"], 1, 1)
    assert vocabulary.encode("c\udce9").tolist() == [vocabulary.encode("c")[0], UNKNOWN]
    assert vocabulary.unseen("c\udce9") == ["\udce9"]
    assert vocabulary.spelling_cost("\udce9") == vocabulary.spelling_cost("z")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ngram": 0}, "--ngram 0 is out of range"),
        ({"ngram": 9}, "--ngram 9 is out of range"),
        ({"min_count": 0}, "--min-count 0 is out of range"),
        ({"min_count": 9}, "no 2-gram occurs 9 times"),
        (
            {"ngram": 8, "normalisation": Normalisation(lower=False)},
            "8-grams over 300 different characters are too many",
        ),
    ],
)
def test_invalid_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        NgramVocabulary.build(["".join(map(chr, range(0x4E00, 0x4E00 + 300)))], **options)


@no_deadline
@given(st.permutations(["the king", "and the hen", "once upon a time", "the end", "zz", "tt"]), NGRAMS)
def test_document_order_does_not_change_the_vocabulary(texts: list[str], n: int) -> None:  # fault 23
    assert NgramVocabulary.build(texts, n, 1) == NgramVocabulary.build(sorted(texts), n, 1)


def test_vocabulary_does_not_depend_on_the_hash_seed() -> None:  # fault 23
    program = (
        "import json; from grimmgen.text.ngrams import NgramVocabulary;"
        "print(json.dumps(NgramVocabulary.build(['the king and the queen of the hens', 'abcdefgh'], 2, 1).to_json()))"
    )
    written = {
        subprocess.check_output([sys.executable, "-c", program], env={**os.environ, "PYTHONHASHSEED": seed})
        for seed in ("0", "1", "4242")
    }
    assert len(written) == 1
    assert b'"th"' in written.pop()


@no_deadline
@given(st.lists(TEXTS.filter(bool), min_size=1, max_size=3), NGRAMS, st.booleans(), NEWLINES, st.booleans())
def test_vocabulary_survives_json(texts: list[str], n: int, lower: bool, newlines: Newlines, phases: bool) -> None:
    vocabulary = NgramVocabulary.build([*texts, "ab" * 2 * n], n, 2, Normalisation(lower, newlines), phases)
    read = NgramVocabulary.from_json(json.loads(json.dumps(vocabulary.to_json())))
    assert read == vocabulary
    assert read.encode("".join(texts)).tolist() == vocabulary.encode("".join(texts)).tolist()


def stored() -> dict[str, Any]:
    # Bigrams th 3, e_ 2, ki 2; unknown: ng, so.
    value: dict[str, Any] = json.loads(json.dumps(NgramVocabulary.build(["thththe e kikingso"], 2, 2).to_json()))
    return value


def test_undamaged_vocabulary_is_accepted() -> None:
    assert stored() == {
        "ngram": 2,
        "lower": True,
        "newlines": "keep",
        "min_count": 2,
        "ngrams": ["th", "e ", "ki"],
        "counts": [3, 2, 2],
        "alphabet": " eghiknost",
        "hidden": {"g": 1, "n": 1, "o": 1, "s": 1},
    }
    assert NgramVocabulary.from_json(stored()).to_json() == stored()


def replaced(**parts: Any) -> Callable[[dict[str, Any]], object]:
    return lambda value: value | parts


def replaced_by(other: object) -> Callable[[dict[str, Any]], object]:
    return lambda _: other


def lacking(part: str) -> Callable[[dict[str, Any]], object]:
    return lambda value: {k: v for k, v in value.items() if k != part}


@pytest.mark.parametrize(
    "damage",
    [
        *map(replaced_by, (None, [], "th", 3, {})),
        *map(lacking, stored()),
        *(replaced(ngram=n) for n in (0, 9, 1, "2", 2.0, True, None)),
        *(replaced(min_count=n) for n in (0, 3, -1, "2", 2.0, True, None)),
        *(replaced(lower=flag) for flag in (0, 1, "true", None)),
        *(replaced(language=code) for code in ("", "de", 7, ["tr"])),
        *(replaced(newlines=word) for word in ("", "Keep", "spaces", 0, True, None, ["keep"])),
        *(
            replaced(ngrams=grams)
            for grams in (
                [],
                ["th", "e "],
                ["th", "e ", "ki", "ng"],
                ["th", "ki", "e "],
                ["e ", "th", "ki"],
                ["th", "ki", "ki"],
                ["th", "e ", "kin"],
                ["th", "", "ki"],
                ["th", "e ", 7],
                ["th", "e ", ["ki"]],
                ["th", "e ", "zz"],
                {"th": 0, "e ": 1, "ki": 2},
                "the",
            )
        ),
        *(
            replaced(counts=counts)
            for counts in ([3, 2], [3, 2, 2, 2], [3, 2, 1], [2, 2, 3], [3, 2, 2.0], [3, 2, "2"], [3, 2, None], 3)
        ),
        replaced(ngrams=[], counts=[]),
        # True is not a count, although bool is a subclass of int.
        replaced(min_count=True, counts=[3, 2, True]),
        replaced(min_count=1, counts=[3, 2, True]),
        *(
            replaced(alphabet=alphabet)
            for alphabet in ("", " eghiknos", "eghiknost ", " eeghiknost", " eghiknots", list(" eghiknost"), None)
        ),
        # So many characters that the keys of their n-grams do not fit into 64 bits.
        replaced(ngram=8, alphabet=" eghiknost" + "".join(map(chr, range(0x4E00, 0x4E00 + 300)))),
        *(
            replaced(hidden=hidden)
            for hidden in (
                {"z": 1},
                {"no": 1},
                {"g": 0},
                {"g": -1},
                {"g": 1.0},
                {"g": True},
                {"g": "1"},
                ["g"],
                None,
            )
        ),
    ],
)
def test_damaged_vocabulary_is_refused(damage: Callable[[dict[str, Any]], object]) -> None:  # fault 22
    with pytest.raises(IntegrityError, match="copy the file again, or train again") as caught:
        NgramVocabulary.from_json(damage(stored()))
    assert caught.value.exit_code == 3
    assert "\n" not in str(caught.value)
