"""What is wrong with a corpus before anyone trains on it, and what to do about each: for `vocab --check`.

Knows stories, splits and sizes, and nothing of terminals.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from grimmgen.configuration import Configuration
from grimmgen.errors import GrimmgenError, UsageError
from grimmgen.evaluation.scores import FEWEST_STORIES
from grimmgen.io import files
from grimmgen.network.shapes import weight_shapes
from grimmgen.text.split import PARTS, Part, Split
from grimmgen.text.vocabulary import UNKNOWN, Vocabulary, normalise

# Two stories are near-duplicates if the smaller one shares so much of its pieces of so many characters. Tales
# that have nothing to do with each other share less than a hundredth of those.
NEAR = 0.3
_PIECE = 24
# Pieces kept of all stories, to bound the memory: of a larger corpus every second or third, and so on, by hash.
_MOST_PIECES = 1 << 22
# What stands in so many stories, or in most of fewer, is none of theirs, but a header or a licence.
_BOILERPLATE = 50
_TOO_MANY_UNKNOWN = 0.02
_FEWEST_UPDATES = 10
# UTF-8 that was read as Latin-1 or Windows-1252 and written again.
_MOJIBAKE = re.compile("[\u00c2\u00c3][\u0080-\u00bf]|\u00e2\u20ac|\u00e2\u0080")


@dataclass(frozen=True)
class Finding:
    """Something that may do harm.

    Attributes:
        kind: file, encoding, empty, characters, duplicate, leak, boilerplate or size.
        what: was found and where, in one line.
        remedy: what to do about it.
        stories: the names of those concerned.
    """

    kind: str
    what: str
    remedy: str
    stories: tuple[str, ...] = ()


def examine(split: Split, configuration: Configuration) -> list[Finding]:
    """Look for what may do harm in the stories of a split, for a model that reads them so.

    Args:
        split: of the corpus.
        configuration: how n-grams are cut, and the model that is to learn them.
    """
    findings, texts = _read(split)
    findings += _odd_characters(texts)
    findings += _alike(split, texts)
    findings += _size(split, texts, configuration)
    return findings


_Texts = Mapping[Part, Sequence[tuple[str, str]]]


def _read(split: Split) -> tuple[list[Finding], dict[Part, list[tuple[str, str]]]]:
    """The texts that can be read, and what is to be said of the others."""
    texts: dict[Part, list[tuple[str, str]]] = {part: [] for part in PARTS}
    unreadable: dict[str, Finding] = {}
    utf16, empty = dict[str, None](), dict[str, None]()
    for part in PARTS:
        for story in split.parts[part]:
            try:
                content = story.content()
            except GrimmgenError as error:
                unreadable[story.name] = Finding("file", error.what, error.remedy, (story.name,))
                continue
            if content.count(b"\0") > len(content) // 4 or content[:2] in {b"\xff\xfe", b"\xfe\xff"}:
                utf16[story.name] = None
                continue
            try:
                text = story.read()
            except GrimmgenError as error:
                remedy = "convert it, as with iconv -f LATIN1 -t UTF-8"
                unreadable[story.name] = Finding("encoding", error.what, remedy, (story.name,))
                continue
            if not text.strip():
                empty[story.name] = None
            else:
                texts[part].append((story.name, text))
    findings = [*unreadable.values()]
    if utf16:
        what = f"{_stories(utf16)} {'look' if len(utf16) > 1 else 'looks'} like UTF-16"
        findings.append(Finding("encoding", what, "convert with iconv -f UTF-16 -t UTF-8", tuple(utf16)))
    # Of a story that is cut into the parts, one may get nothing but the end of a line.
    empty = {name: None for name in empty if all(name != other for part in PARTS for other, _ in texts[part])}
    if empty:
        findings.append(Finding("empty", f"{_stories(empty)}: no text", "remove", tuple(empty)))
    return findings, texts


def _odd_characters(texts: _Texts) -> list[Finding]:
    findings = []
    having: dict[str, list[str]] = {}
    mangled = dict[str, None]()
    for part in PARTS:
        for name, text in texts[part]:
            for character in set(text):
                # Controls but those of lines and tabs, what is invisible, private or no character at all.
                odd = unicodedata.category(character) in {"Cc", "Cf", "Co", "Cn", "Cs"}
                if (odd and character not in "\t\n\r\f") or character == "\ufffd":
                    having.setdefault(character, []).append(name)
            if _MOJIBAKE.search(text):
                mangled[name] = None
    for character, names in sorted(having.items()):
        shown = f"U+{ord(character):04X} {unicodedata.name(character, 'a control character')}"
        remedy = (
            "replace it: what it stood for is lost" if character == "\ufffd" else "remove it, as with tr or sed"
        )
        findings.append(
            Finding("characters", f"{shown} in {_stories(names)}", remedy, tuple(dict.fromkeys(names)))
        )
    if mangled:
        what = f"{_stories(mangled)}: UTF-8 that was once taken for Latin-1 (as “Ã©” for “é”)"
        findings.append(Finding("characters", what, "convert with iconv -f UTF-8 -t LATIN1", tuple(mangled)))
    return findings


def _alike(split: Split, texts: _Texts) -> list[Finding]:
    """Stories that are the same, nearly the same, or share what is none of theirs."""
    every = [(part, name, " ".join(text.lower().split())) for part in PARTS for name, text in texts[part]]
    if not split.by_story or len(every) < 2:
        # Every story is cut into the parts: they are of the same stories by intent.
        return []
    findings = []
    first: dict[str, int] = {}
    pairs: list[tuple[int, int, float]] = []
    kept = []
    for number, (_, _, text) in enumerate(every):
        digest = files.sha256(text.encode("utf-8", "surrogatepass"))
        if (same := first.setdefault(digest, number)) != number:
            pairs.append((same, number, 1.0))
        else:
            kept.append(number)
    near, common = _near([every[number][2] for number in kept])
    pairs += [(kept[a], kept[b], share) for a, b, share in near]
    for a, b, share in sorted(pairs, key=lambda pair: (-pair[2], pair[:2])):
        (part, name, _), (other_part, other, _) = every[a], every[b]
        what = f"{name} and {other} " + (
            "are the same" if share == 1.0 else f"share {share:.0%} of the smaller one"
        )
        if part == other_part:
            findings.append(Finding("duplicate", f"{what} (both {part})", "remove one of them", (name, other)))
        else:
            what = f"{what}, and one is in {part}, one in {other_part}"
            remedy = "remove one, or put both into one part (--split): what was learnt by heart is judged well"
            findings.append(Finding("leak", what, remedy, (name, other)))
    if common:
        passage, stories = common
        what = f"“{passage}…” stands in {stories} of {len(every)} stories"
        findings.append(Finding("boilerplate", what, "remove headers and licences before training"))
    return findings


def _near(texts: Sequence[str]) -> tuple[list[tuple[int, int, float]], tuple[str, int] | None]:
    """Pairs of texts that share much, with the share of the smaller one's pieces; and a passage that most have.

    Pieces are all runs of _PIECE characters (shingles: Broder 1997), compared by a hash of 64 bits.
    """
    every = max(1, -(-sum(map(len, texts)) // _MOST_PIECES))
    hashes, places, sizes = [], [], []
    for text in texts:
        found, at = np.unique(_pieces(text), return_index=True)
        chosen = found % np.uint64(every) == 0
        hashes.append(found[chosen])
        places.append(at[chosen])
        sizes.append(int(chosen.sum()))
    pieces, story = np.concatenate(hashes), np.repeat(np.arange(len(texts)), sizes)
    order = np.argsort(pieces, kind="stable")
    pieces, story, place = pieces[order], story[order], np.concatenate(places)[order]
    # How many stories have each piece; of what a great many have, no pairs are made.
    begins = np.flatnonzero(np.concatenate([[True], pieces[1:] != pieces[:-1]])) if len(pieces) else np.arange(0)
    times = np.diff(np.append(begins, len(pieces)))
    common = None
    limit = min(_BOILERPLATE, max(9, len(texts) // 2))
    if len(times) and (most := int(times.max())) > limit:
        at = begins[int(times.argmax())]
        common = texts[story[at]][place[at] : place[at] + 2 * _PIECE], most
    rare = np.repeat(times <= limit, times)
    pieces, story = pieces[rare], story[rare]
    shared: Counter[tuple[int, int]] = Counter()
    for apart in range(1, limit):
        both = np.flatnonzero(pieces[apart:] == pieces[:-apart])
        if not len(both):
            break
        # Sorted by story among equal pieces: the smaller number comes first.
        pair, number = np.unique(story[both] * len(texts) + story[both + apart], return_counts=True)
        shared.update({divmod(p, len(texts)): n for p, n in zip(pair.tolist(), number.tolist(), strict=True)})
    found_pairs = [(a, b, n / min(sizes[a], sizes[b])) for (a, b), n in shared.items()]
    # Less than a handful of pieces says nothing.
    near = [(a, b, min(0.99, s)) for a, b, s in found_pairs if s >= NEAR and min(sizes[a], sizes[b]) >= 8]
    return near, common


def _pieces(text: str) -> NDArray[np.uint64]:
    """A hash of each run of _PIECE characters: a polynomial of their code points, modulo 2^64."""
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4").astype(np.uint64)
    count = max(0, len(codes) - _PIECE + 1)
    hashes = np.zeros(count, np.uint64)
    for at in range(_PIECE):
        hashes = hashes * np.uint64(0x9E3779B97F4A7C15) + codes[at : at + count]
    # The high bits are well mixed, the low ones are what the sampling looks at.
    mixed: NDArray[np.uint64] = hashes ^ (hashes >> np.uint64(32))
    return mixed


def _size(split: Split, texts: _Texts, configuration: Configuration) -> list[Finding]:
    """Whether there is enough for the model, for its validation, and for its vocabulary."""
    c = configuration
    findings = []
    try:
        vocabulary = Vocabulary.build(
            (t for _, t in texts["train"]), c.ngram, c.min_count, c.lower, c.newlines, c.phases
        )
    except UsageError as error:
        return [Finding("size", error.what, error.remedy)]
    ids = {part: [vocabulary.encode(text) for _, text in texts[part]] for part in PARTS}
    ngrams = {part: sum(map(len, ids[part])) for part in PARTS}
    parameters = sum(math.prod(shape) for shape in weight_shapes(c, len(vocabulary)).values())
    if ngrams["train"] < parameters:
        what = f"{ngrams['train']:,} {c.ngram}-grams to learn {parameters:,} parameters from (--hidden {c.hidden})"
        findings.append(Finding("size", what, "give more text, lower --hidden, or raise --dropout"))
    updates = ngrams["train"] // (c.batch_size * c.unroll)
    if updates < _FEWEST_UPDATES:
        what = f"{updates} updates an epoch (--batch-size {c.batch_size}, --unroll {c.unroll})"
        findings.append(Finding("size", what, "lower --batch-size"))
    for part in PARTS[1:]:
        hidden = sum(int(np.count_nonzero(story == UNKNOWN)) for story in ids[part]) / max(1, ngrams[part])
        if hidden > _TOO_MANY_UNKNOWN:
            what = f"{hidden:.1%} of the {c.ngram}-grams of the {part} stories are <unk>"
            findings.append(Finding("size", what, "lower --min-count or --ngram, or give more text"))
        if split.by_story and len(texts[part]) < FEWEST_STORIES:
            what = f"{len(texts[part])} {part} stories: differences between runs may be chance"
            findings.append(
                Finding("size", what, f"put {FEWEST_STORIES} or more there (--split), or cut longer ones")
            )
    alphabet = set(vocabulary.alphabet)
    for part in PARTS[1:]:
        strange = {c_ for _, t in texts[part] for c_ in normalise(t, c.lower, c.newlines)} - alphabet
        if strange:
            shown = " ".join(repr(character) for character in sorted(strange)[:10])
            what = f"the {part} stories have characters that no training story has: {shown}"
            findings.append(Finding("characters", what, "harmless if rare; else give the training stories some"))
    return findings


def _stories(names: Mapping[str, None] | Sequence[str]) -> str:
    named = list(dict.fromkeys(names))
    more = f" and {len(named) - 5} more" if len(named) > 5 else ""
    return f"{'stories' if len(named) > 1 else 'the story'} {', '.join(named[:5])}{more}"
