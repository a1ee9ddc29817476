"""The vocabulary, held against a plain one made of strings and counters."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
import unicodedata
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from grimmgen.configuration import Newlines
from grimmgen.errors import IntegrityError, UsageError
from grimmgen.text.vocabulary import END, UNKNOWN, Vocabulary, normalise

# Few characters, so that n-grams repeat, and those that are folded, composed, joined or easily lost.
ODD = "ab AB\0\r\n\t\u2028\ufeffe\u0301\u0130\u03a3\u1e9e\u212b\U0001f469\u200d\U0001f680"
# Lone surrogates are no Unicode text; `test_a_lone_surrogate…` has them.
TEXTS = st.text(st.sampled_from(ODD) | st.characters(exclude_categories=["Cs"]), max_size=40)
NGRAMS = st.integers(1, 4)
NEWLINES: st.SearchStrategy[Newlines] = st.sampled_from(["keep", "space"])
# A busy machine is no failure.
patiently = settings(deadline=None)


def folded(text: str, lower: bool, newlines: Newlines = "keep") -> str:
    text = re.sub("\r\n?|\n", "\n" if newlines == "keep" else " ", text)
    return unicodedata.normalize("NFC", text.lower() if lower else text)


def cut(text: str, n: int) -> list[str]:
    return [text[i : i + n] for i in range(0, len(text), n)]


class Plain:
    """The same vocabulary, of strings alone."""

    def __init__(
        self,
        texts: list[str],
        n: int,
        min_count: int,
        lower: bool,
        newlines: Newlines = "keep",
        phases: bool = False,
    ) -> None:
        self.n, self.lower, self.newlines = n, lower, newlines
        ways = [way for text in texts for way in self.ways(text)[: n if phases else 1]]
        counts = Counter(gram for way in ways for gram in way)
        ranked = sorted(counts, key=lambda gram: (-counts[gram], [ord(c) for c in gram]))
        self.kept = {gram: counts[gram] for gram in ranked if counts[gram] >= min_count}
        self.ids = {gram: i for i, gram in enumerate(self.kept, start=2)}
        self.alphabet = sorted({c for text in texts for c in self.folded(text)})
        places = [
            place
            for gram in counts
            if gram not in self.kept
            for place in self.places(gram)
            for _ in range(counts[gram])
        ]
        self.hidden = Counter(places)
        self.total = len(places) + len(self.alphabet) + 2

    def folded(self, text: str) -> str:
        return folded(text, self.lower, self.newlines)

    def ways(self, text: str) -> list[list[str]]:
        return [cut(self.folded(text)[phase:], self.n) for phase in range(self.n)]

    def places(self, gram: str) -> list[str]:
        return [*gram, *[""] * (self.n - len(gram))]

    def encode(self, text: str) -> list[int]:
        return self.encode_phases(text)[0]

    def encode_phases(self, text: str) -> list[list[int]]:
        return [[self.ids.get(gram, 0) for gram in way] for way in self.ways(text)]

    def cost(self, gram: str) -> float:
        known = {"", *self.alphabet}
        p = [(self.hidden[c] + 1 if c in known else 1 / 0x110000) / self.total for c in self.places(gram)]
        return 0.0 if gram in self.ids else -math.log(math.prod(p))


@patiently
@given(st.lists(TEXTS, max_size=4), TEXTS, NGRAMS, st.integers(1, 3), st.booleans(), NEWLINES, st.booleans())
@example(["ab", "ab\0"], "abab\0\0", 3, 1, True, "keep", False)  # a short last n-gram is not one that ends in NUL
@example(["\u0130stanbul"], "\u0130", 1, 1, True, "keep", False)  # one character that folds to two
@example(["e\u0301"], "\u00e9", 1, 1, False, "keep", False)
@example(["abababcdcdefghg"], "cdg", 2, 3, False, "keep", False)  # hidden once, and more than once
@example([], "a", 1, 1, False, "keep", False)
@example(["aa", "b"], "c" * 9, 4, 1, False, "keep", False)
@example(["a", "ab", ""], "b", 2, 1, False, "keep", True)  # a phase that begins at a story's end has nothing
@example(["ababa\r\nb"], "a\nb\rc", 2, 2, False, "space", True)
def test_any_text_has_the_ids_and_costs_that_counting_strings_gives(
    texts: list[str], probe: str, n: int, min_count: int, lower: bool, newlines: Newlines, phases: bool
) -> None:
    plain = Plain(texts, n, min_count, lower, newlines, phases)
    if not plain.kept:
        with pytest.raises(UsageError, match="give more text"):
            Vocabulary.build(texts, n, min_count, lower, newlines, phases)
        return
    vocabulary = Vocabulary.build(texts, n, min_count, lower, newlines, phases)
    assert dict(zip(vocabulary.ngrams, vocabulary.counts, strict=True)) == plain.kept
    assert list(vocabulary.ngrams) == list(plain.kept)
    assert list(vocabulary.alphabet) == plain.alphabet
    assert dict(vocabulary.hidden) == plain.hidden
    assert len(vocabulary) == len(plain.kept) + 2
    for text in [*texts, probe]:
        ids, costs, characters = vocabulary.encode_with_costs(text)
        assert ids.dtype == np.int32
        assert ids.tolist() == vocabulary.encode(text).tolist() == plain.encode(text)
        assert [way.tolist() for way in vocabulary.encode_phases(text)] == plain.encode_phases(text)
        assert all(way.dtype == np.int32 for way in vocabulary.encode_phases(text))
        assert characters == len(plain.folded(text))
        assert costs.tolist() == pytest.approx([plain.cost(gram) for gram in plain.ways(text)[0]])
        assert [cost > 0 for cost in costs] == [i == UNKNOWN for i in ids]
    assert vocabulary.unseen(probe) == [c for c in dict.fromkeys(plain.folded(probe)) if c not in plain.alphabet]


@patiently
@given(st.lists(TEXTS.filter(bool), min_size=1, max_size=4), NGRAMS, st.booleans())
def test_what_is_known_comes_back_from_its_ids(texts: list[str], n: int, lower: bool) -> None:
    vocabulary = Vocabulary.build(texts, n, 1, lower)
    for text in texts:
        ids = vocabulary.encode(text)
        assert vocabulary.decode(ids) == "".join(map(vocabulary.token, ids)) == folded(text, lower)
        assert vocabulary.decode([END, *ids, UNKNOWN]) == vocabulary.decode(ids)


@patiently
@given(TEXTS, st.booleans(), NEWLINES)
@example("a\r\n\u0301\n\rb", True, "space")
def test_normalising_twice_changes_nothing_more(text: str, lower: bool, newlines: Newlines) -> None:
    once = normalise(text, lower, newlines)
    assert normalise(once, lower, newlines) == once == folded(text, lower, newlines)
    assert "\r" not in once
    assert newlines == "keep" or "\n" not in once


def test_both_cuts_of_a_sentence_are_counted_and_encoded() -> None:
    # th|et|he and he|th|e.
    vocabulary = Vocabulary.build(["thethe"], 2, 1, phases=True)
    assert dict(zip(vocabulary.ngrams, vocabulary.counts, strict=True)) == {"he": 2, "et": 1, "th": 2, "e": 1}
    assert [vocabulary.decode(ids) for ids in vocabulary.encode_phases("thethe")] == ["thethe", "hethe"]


def test_line_ends_are_spaces_on_request() -> None:
    vocabulary = Vocabulary.build(["the\r\nking\nthe king"], 1, 1, newlines="space")
    assert vocabulary.alphabet == " eghiknt"
    assert vocabulary.encode("e\nk").tolist() == vocabulary.encode("e k").tolist()
    assert vocabulary.normalise("The\rking") == "the king"
    assert "\n" in Vocabulary.build(["the\nking"], 1, 1).alphabet


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
def test_normal_form_is_as_documented(text: str, expected: str) -> None:  # fault 20
    assert normalise(text, lower=True) == expected


@pytest.mark.parametrize("n", range(1, 5))
def test_the_table_and_the_sorted_keys_find_the_same_ids(n: int) -> None:
    # 100 characters: up to trigrams there is a table of all keys, beyond it would be too large.
    draw = np.random.default_rng(n)
    characters = [chr(c) for c in range(0x4E00, 0x4E00 + 100)]
    story = "".join(draw.choice(characters[:3] * 40 + characters, 3000))
    vocabulary, plain = Vocabulary.build([story], n, 2, False), Plain([story], n, 2, False)
    probe = story[1:] + "".join(draw.choice([*characters[:3] * 30, "?", "\0", "\U0010ffff"], 1001))
    assert vocabulary.encode(probe).tolist() == plain.encode(probe)
    assert len(set(plain.encode(probe))) > 10


def test_of_all_characters_only_those_of_the_stories_are_known() -> None:
    characters = "".join(chr(c) for c in range(0x30000) if not 0xD800 <= c < 0xE000)
    vocabulary = Vocabulary.build(["az\u4e00\U0001f600"], 1, 1)
    known = {vocabulary.token(i) for i in vocabulary.encode(characters) if i != UNKNOWN}
    assert known == {*"az\u4e00\U0001f600"}
    assert np.count_nonzero(vocabulary.encode(characters)) == 6  # A and Z are folded to a and z


def test_ids_go_by_frequency_and_then_by_code_point() -> None:
    # In UTF-16 an emoji would come before U+FFFF.
    vocabulary = Vocabulary.build(
        ["zz" * 3 + "bb" * 2 + "\U0001f600." * 2 + "\uffff." * 2 + "aa" * 2 + "once"], 2, 2
    )
    assert vocabulary.ngrams == ("zz", "aa", "bb", "\uffff.", "\U0001f600.")
    assert vocabulary.counts == (3, 2, 2, 2, 2)
    assert [vocabulary.token(i) for i in range(3)] == ["<unk>", "<end>", "zz"]


def test_spelling_what_is_hidden_costs_what_its_characters_cost() -> None:
    vocabulary = Vocabulary.build(["aaaaabc"], 2, 2)  # aa twice; ab, c and an empty place are hidden
    assert vocabulary.hidden == (("", 1), ("a", 1), ("b", 1), ("c", 1))
    ids, costs, characters = vocabulary.encode_with_costs("AAabz")
    assert (ids.tolist(), characters) == ([2, 0, 0], 5)
    # Four places are hidden; one more for each of three characters, the empty place, and all the others.
    assert costs.tolist() == pytest.approx([0, 2 * math.log(9 / 2), math.log(9 * 0x110000) + math.log(9 / 2)])


@patiently
@given(st.lists(TEXTS.filter(bool), min_size=1, max_size=3), NGRAMS, TEXTS)
def test_spelling_is_a_proper_code(texts: list[str], n: int, probe: str) -> None:
    vocabulary = Vocabulary.build([*texts, "ab" * 12 * n], n, 3)
    escapes = {round(vocabulary.spelling_cost(c), 9) for c in [*vocabulary.unseen(probe), "\U0010fffd"]}
    assert len(escapes) == 1, "every character never seen costs the same"
    escape = math.exp(-(escapes.pop() - math.log(0x110000)))
    seen = (math.exp(-vocabulary.spelling_cost(c)) for c in [*vocabulary.alphabet, ""])
    assert math.fsum([*seen, escape]) == pytest.approx(1)


def test_the_share_that_is_hidden_is_that_of_the_training_stories() -> None:
    for text, n in ("aaaaabc", 2), ("aaaaaabcdea", 3):
        vocabulary = Vocabulary.build([text, text[:-1]], n, 3)
        ids = np.concatenate([vocabulary.encode(text), vocabulary.encode(text[:-1])])
        assert vocabulary.unknown == pytest.approx(np.mean(ids == UNKNOWN))
        assert 0 < vocabulary.unknown < 1


def test_a_lone_surrogate_is_a_character_never_seen() -> None:
    vocabulary = Vocabulary.build(["caf\u00e9"], 1, 1)
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
        ({"ngram": 8, "lower": False}, "8-grams over 300 different characters are too many"),
    ],
)
def test_what_cannot_be_counted_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Vocabulary.build(["".join(map(chr, range(0x4E00, 0x4E00 + 300)))], **options)


@patiently
@given(st.permutations(["the king", "and the hen", "once upon a time", "the end", "zz", "tt"]), NGRAMS)
def test_the_order_of_the_stories_is_without_effect(texts: list[str], n: int) -> None:  # fault 23
    assert Vocabulary.build(texts, n, 1) == Vocabulary.build(sorted(texts), n, 1)


def test_a_vocabulary_is_byte_identical_under_any_hash_seed() -> None:  # fault 23
    program = (
        "import json; from grimmgen.text.vocabulary import Vocabulary;"
        "print(json.dumps(Vocabulary.build(['the king and the queen of the hens', 'abcdefgh'], 2, 1).to_json()))"
    )
    written = {
        subprocess.check_output([sys.executable, "-c", program], env={**os.environ, "PYTHONHASHSEED": seed})
        for seed in ("0", "1", "4242")
    }
    assert len(written) == 1
    assert b'"th"' in written.pop()


@patiently
@given(st.lists(TEXTS.filter(bool), min_size=1, max_size=3), NGRAMS, st.booleans(), NEWLINES, st.booleans())
def test_a_vocabulary_survives_json(
    texts: list[str], n: int, lower: bool, newlines: Newlines, phases: bool
) -> None:
    vocabulary = Vocabulary.build([*texts, "ab" * 2 * n], n, 2, lower, newlines, phases)
    read = Vocabulary.from_json(json.loads(json.dumps(vocabulary.to_json())))
    assert read == vocabulary
    assert read.encode("".join(texts)).tolist() == vocabulary.encode("".join(texts)).tolist()


def stored() -> dict[str, Any]:
    # Bigrams th 3, e_ 2, ki 2; hidden: ng, so.
    value: dict[str, Any] = json.loads(json.dumps(Vocabulary.build(["thththe e kikingso"], 2, 2).to_json()))
    return value


def test_what_the_damages_are_done_to_is_sound() -> None:
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
    assert Vocabulary.from_json(stored()).to_json() == stored()


def replaced(**parts: Any) -> Callable[[dict[str, Any]], object]:
    return lambda value: value | parts


def swapped_for(other: object) -> Callable[[dict[str, Any]], object]:
    return lambda _: other


def lacking(part: str) -> Callable[[dict[str, Any]], object]:
    return lambda value: {k: v for k, v in value.items() if k != part}


@pytest.mark.parametrize(
    "damage",
    [
        *map(swapped_for, (None, [], "th", 3, {})),
        *map(lacking, stored()),
        *(replaced(ngram=n) for n in (0, 9, 1, "2", 2.0, True, None)),
        *(replaced(min_count=n) for n in (0, 3, -1, "2", 2.0, True, None)),
        *(replaced(lower=flag) for flag in (0, 1, "true", None)),
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
        # True is not a count, though Python takes it for one.
        replaced(min_count=True, counts=[3, 2, True]),
        replaced(min_count=1, counts=[3, 2, True]),
        *(
            replaced(alphabet=alphabet)
            for alphabet in ("", " eghiknos", "eghiknost ", " eeghiknost", " eghiknots", list(" eghiknost"), None)
        ),
        # So many characters that their n-grams have no keys.
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
def test_a_damaged_vocabulary_is_refused(damage: Callable[[dict[str, Any]], object]) -> None:  # fault 22
    with pytest.raises(IntegrityError, match="copy the file again, or train anew") as caught:
        Vocabulary.from_json(damage(stored()))
    assert caught.value.exit_code == 3
    assert "\n" not in str(caught.value)
