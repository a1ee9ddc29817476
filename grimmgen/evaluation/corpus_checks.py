"""Checks of a corpus before training, each with a remedy, for `vocab --check`."""

from __future__ import annotations

import math
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from grimmgen.configuration import Configuration
from grimmgen.errors import GrimmgenError, UsageError
from grimmgen.evaluation.scores import MIN_DOCUMENTS
from grimmgen.io import files
from grimmgen.network.shapes import weight_shapes
from grimmgen.reading.repair import REPLACEMENT, find_defects, is_repairable
from grimmgen.text.corpus import size_of
from grimmgen.text.extraction import Extracted
from grimmgen.text.normalisation import normalise
from grimmgen.text.split import PARTS, Part, Split
from grimmgen.text.tokenizers import build_vocabulary
from grimmgen.text.vocabulary import UNKNOWN

# Two documents are near-duplicates if they share this fraction of the smaller one's shingles, which have
# _SHINGLE characters. Unrelated tales share less than 0.01.
NEAR = 0.3
_SHINGLE = 24
# Bytes of text up to which a training looks for leaks, which takes less than a second for each megabyte.
LEAK_SEARCH = 4 << 20
_MIN_SHINGLES = 8
# Number of shingles kept, to bound the memory. Of a larger corpus, a sample is compared, chosen by hash.
_MAX_SHINGLES = 1 << 22
# Characters that are hashed at once: each takes some 30 bytes.
_PIECE = 1 << 20
# A passage in this many documents, or in most documents of a smaller corpus, is a header or a licence.
_BOILERPLATE = 50
_MAX_UNKNOWN = 0.02
_MIN_UPDATES = 10


@dataclass(frozen=True)
class Finding:
    """A possible problem of a corpus.

    Attributes:
        kind: file, encoding, empty, characters, duplicate, leak, boilerplate or size.
        what: the problem and its place, in one line.
        remedy: how to solve it.
        documents: the names of the documents concerned.
    """

    kind: str
    what: str
    remedy: str
    documents: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The finding as a JSON value."""
        return {"kind": self.kind, "what": self.what, "remedy": self.remedy, "stories": self.documents}


def check_corpus(split: Split, configuration: Configuration, sources: Sequence[Extracted] = ()) -> list[Finding]:
    """Check the documents of a split for problems in training.

    Args:
        split: of the corpus.
        configuration: the tokenization, and the model to be trained.
        sources: the files of the corpus, with their encodings.
    """
    findings, texts = _read(split)
    findings += _check_encodings(sources)
    findings += _check_characters(texts)
    findings += _check_duplicates(split, texts)
    findings += _check_size(split, texts, configuration)
    return findings


def find_leaks(split: Split) -> list[Finding]:
    """Find documents that are alike and in different parts, for a warning before training.

    A text of more than LEAK_SEARCH bytes is not searched, nor are documents that are split by their content, as lines
    are: equal ones are in one part.
    """
    if (split.sources is not None and split.by_story) or sum(map(size_of, split.parts.values())) > LEAK_SEARCH:
        return []
    texts = {part: [(d.name, d.read()) for d in documents] for part, documents in split.parts.items()}
    return [finding for finding in _check_duplicates(split, texts) if finding.kind == "leak"]


_Texts = Mapping[Part, Sequence[tuple[str, str]]]  # (name, text) pairs


def _read(split: Split) -> tuple[list[Finding], dict[Part, list[tuple[str, str]]]]:
    """Read all documents; those that cannot be used are findings."""
    texts: dict[Part, list[tuple[str, str]]] = {part: [] for part in PARTS}
    # By name, because a document that is cut into the parts is in all of them.
    unreadable: dict[str, Finding] = {}
    empty = dict[str, None]()
    for part in PARTS:
        for document in split.parts[part]:
            name = document.name
            try:
                text = document.read()
            except GrimmgenError as error:
                unreadable[name] = Finding("file", error.what, error.remedy, (name,))
                continue
            if not text.strip():
                empty[name] = None
            else:
                texts[part].append((name, text))
    findings = [*unreadable.values()]
    # One part of a document that is cut into the parts may be a single line end.
    empty = {name: None for name in empty if all(name != other for part in PARTS for other, _ in texts[part])}
    if empty:
        findings.append(Finding("empty", f"{_listed(empty)}: no text", "remove", tuple(empty)))
    return findings, texts


def _check_encodings(sources: Sequence[Extracted]) -> list[Finding]:
    """Find files whose encoding was guessed."""
    guessed: dict[tuple[str, str], list[str]] = {}
    for source in sources:
        if source.encoding is not None and source.encoding[1].startswith("by "):
            guessed.setdefault(source.encoding, []).append(source.name)
    return [
        Finding(
            "encoding",
            f"{', '.join(names[:5])}{f' and {len(names) - 5} more' if len(names) > 5 else ''} read as {encoding},"
            f" recognised {reason}",
            "if that is wrong, give the --encoding",
            tuple(names),
        )
        for (encoding, reason), names in guessed.items()
    ]


def _check_characters(texts: _Texts) -> list[Finding]:
    """Find what `repair` repairs, and characters that stand for unknown ones."""
    strays: dict[str, dict[str, None]] = {}
    counts: Counter[str] = Counter()
    where: dict[str, dict[str, None]] = {}
    for part in PARTS:
        for name, text in texts[part]:
            defects = find_defects([text])
            for character in defects.characters:
                strays.setdefault(character, {})[name] = None
            kinds = {
                "ligatures": defects.ligatures.total(),
                "mojibake": defects.mojibake,
                "hyphens": defects.hyphens,
            }
            for kind, count in kinds.items():
                if count:
                    counts[kind] += count
                    where.setdefault(kind, {})[name] = None
    findings = []
    for character, names in sorted(strays.items()):
        what = f"U+{ord(character):04X} {_character_name(character)} in {_listed(names)}"
        remedy = "vocab --repair DIR removes it"
        if character == REPLACEMENT:
            remedy = "replace it: the original character is lost"
        elif not is_repairable(character):
            remedy = "replace it: only the font that it was written for shows it"
        findings.append(Finding("characters", what, remedy, tuple(names)))
    for kind, (what, remedy) in _DEFECTS.items():
        if names := where.get(kind, {}):
            what = f"{counts[kind]:,} {what} in {_listed(names)}"
            findings.append(Finding("characters", what, remedy, tuple(names)))
    return findings


_DEFECTS = {
    "mojibake": (
        "characters of UTF-8 that were decoded as Windows-1252 or Latin-1 (as “Ã©” for “é”)",
        "vocab --repair DIR restores them",
    ),
    "ligatures": ("ligatures, as “\ufb01” for “fi”,", "vocab --repair DIR replaces them by letters"),
    "hyphens": ("words that are split between lines, as in a PDF,", "vocab --repair DIR joins them"),
}


def _character_name(character: str) -> str:
    kinds = {"Cc": "a control character", "Co": "a private-use character"}
    return unicodedata.name(character, kinds.get(unicodedata.category(character), "a noncharacter"))


def _check_duplicates(split: Split, texts: _Texts) -> list[Finding]:
    """Find duplicates, near-duplicates and passages that many documents share."""
    parted = [(part, name, text) for part in PARTS for name, text in texts[part]]
    if not split.by_story:
        # Every document is cut into the parts: those that are alike are in different parts, whichever is named.
        whole: dict[str, str] = {}
        for _, name, text in parted:
            whole[name] = whole.get(name, "") + text
        parted = [("train", name, text) for name, text in whole.items()]
    documents = [(part, name, " ".join(text.lower().split())) for part, name, text in parted]
    if len(documents) < 2:
        return []
    same: dict[str, list[int]] = {}
    for number, (_, _, text) in enumerate(documents):
        same.setdefault(files.sha256(text.encode("utf-8", "surrogatepass")), []).append(number)
    groups = [(numbers, "are the same") for numbers in same.values() if len(numbers) > 1]
    distinct = [numbers[0] for numbers in same.values()]
    near, common = _near_duplicates([documents[number][2] for number in distinct])
    groups += [
        ([distinct[a], distinct[b]], f"share {share:.0%} of the smaller one")
        for a, b, share in sorted(near, key=lambda pair: (-pair[2], pair[:2]))
    ]
    findings = []
    for numbers, relation in groups:
        names = tuple(documents[number][1] for number in numbers)
        parts = sorted({documents[number][0] for number in numbers}, key=PARTS.index)
        pair = len(names) == 2
        what = f"{' and '.join(names) if pair else _listed(names)} {relation}"
        if not split.by_story:
            what = f"{what}, and {'both' if pair else 'all'} are cut into all parts"
            remedy = f"remove {'one' if pair else 'all but one'}: memorised text gets better scores"
            findings.append(Finding("leak", what, remedy, names))
        elif len(parts) == 1:
            what = f"{what} ({'both' if pair else 'all'} {parts[0]})"
            remedy = f"remove {'one' if pair else 'all but one'} of them"
            findings.append(Finding("duplicate", what, remedy, names))
        else:
            one, verb = ("one", "is") if pair else ("some", "are")
            what = f"{what}, and {one} {verb} in {f', {one} in '.join(parts)}"
            rest = "one" if pair else "all but one"
            remedy = f"remove {rest}, or put them into one part (--split): memorised text gets better scores"
            findings.append(Finding("leak", what, remedy, names))
    if common:
        passage, count = common
        what = f"“{passage}…” occurs in {count} of {len(documents)} stories"
        findings.append(Finding("boilerplate", what, "remove headers and licences before training"))
    return findings


def _near_duplicates(texts: Sequence[str]) -> tuple[list[tuple[int, int, float]], tuple[str, int] | None]:
    """Find pairs of similar texts, and the most common passage.

    Texts are compared by their shingles, all runs of _SHINGLE characters (Broder 1997), as 64-bit hashes.

    Returns:
        (index, index, share of the smaller text's shingles) of each pair; and the passage with the number of texts
        that have it, None if it is in few.
    """
    stride = max(1, -(-sum(map(len, texts)) // _MAX_SHINGLES))
    hashes, offsets, sizes = [], [], []
    for text in texts:
        distinct, at = _sampled_shingles(text, stride)
        hashes.append(distinct)
        offsets.append(at)
        sizes.append(len(distinct))
    # All shingles, sorted by hash, then by text.
    shingles, owner = np.concatenate(hashes), np.repeat(np.arange(len(texts)), sizes)
    order = np.argsort(shingles, kind="stable")
    shingles, owner, offset = shingles[order], owner[order], np.concatenate(offsets)[order]
    # The number of texts with each shingle; very common ones are boilerplate, and make no pairs.
    fresh = np.concatenate([[True], shingles[1:] != shingles[:-1]]) if len(shingles) else np.zeros(0, np.bool_)
    begins = np.flatnonzero(fresh)
    counts = np.diff(np.append(begins, len(shingles)))
    common = None
    limit = min(_BOILERPLATE, max(9, len(texts) // 2))
    if len(counts) and (most := int(counts.max())) > limit:
        at = begins[int(counts.argmax())]
        common = texts[owner[at]][offset[at] : offset[at] + 2 * _SHINGLE], most
    rare = np.repeat(counts <= limit, counts)
    shingles, owner = shingles[rare], owner[rare]
    shared: Counter[tuple[int, int]] = Counter()
    for distance in range(1, limit):
        both = np.flatnonzero(shingles[distance:] == shingles[:-distance])
        if not len(both):
            break
        # Equal shingles are sorted by text, so the smaller index is the first of the pair.
        pair, count = np.unique(owner[both] * len(texts) + owner[both + distance], return_counts=True)
        shared.update({divmod(p, len(texts)): n for p, n in zip(pair.tolist(), count.tolist(), strict=True)})
    near = []
    for (a, b), n in shared.items():
        smaller = min(sizes[a], sizes[b])
        if smaller >= _MIN_SHINGLES and n / smaller >= NEAR:
            near.append((a, b, min(0.99, n / smaller)))
    return near, common


def _sampled_shingles(text: str, stride: int) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """The distinct shingles of a text whose hash is a multiple of `stride`, and where each is first."""
    chosen, offsets = [np.zeros(0, np.uint64)], [np.zeros(0, np.int64)]
    for begin in range(0, len(text), _PIECE):
        shingles = _shingles(text[begin : begin + _PIECE + _SHINGLE - 1])
        at = np.flatnonzero(shingles % np.uint64(stride) == 0)
        chosen.append(shingles[at])
        offsets.append(at + begin)
    distinct, first = np.unique(np.concatenate(chosen), return_index=True)
    return distinct, np.concatenate(offsets)[first]


def _shingles(text: str) -> NDArray[np.uint64]:
    """A hash of each run of _SHINGLE characters: a polynomial of their code points, modulo 2^64."""
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4").astype(np.uint64)
    count = max(0, len(codes) - _SHINGLE + 1)
    hashes = np.zeros(count, np.uint64)
    for at in range(_SHINGLE):
        hashes = hashes * np.uint64(0x9E3779B97F4A7C15) + codes[at : at + count]
    # Sampling uses the low bits, which are poorly mixed.
    mixed: NDArray[np.uint64] = hashes ^ (hashes >> np.uint64(32))
    return mixed


def _check_size(split: Split, texts: _Texts, configuration: Configuration) -> list[Finding]:
    """Check whether there is enough text for the model, the vocabulary, and validation."""
    c = configuration
    findings = []
    try:
        vocabulary = build_vocabulary((t for _, t in texts["train"]), c)
    except UsageError as error:
        return [Finding("size", error.what, error.remedy)]
    ids = {part: [vocabulary.encode(text) for _, text in texts[part]] for part in PARTS}
    tokens = {part: sum(map(len, ids[part])) for part in PARTS}
    parameters = sum(math.prod(shape) for shape in weight_shapes(c, len(vocabulary)).values())
    if tokens["train"] < parameters:
        what = (
            f"{tokens['train']:,} {c.tokenization.units} to train {parameters:,} parameters (--hidden {c.hidden})"
        )
        findings.append(Finding("size", what, "give more text, lower --hidden, or raise --dropout"))
    updates = tokens["train"] // (c.batch_size * c.unroll)
    if updates < _MIN_UPDATES:
        what = f"{updates} updates per epoch (--batch-size {c.batch_size}, --unroll {c.unroll})"
        findings.append(Finding("size", what, "lower --batch-size"))
    for part in PARTS[1:]:
        unknown = sum(int(np.count_nonzero(document == UNKNOWN)) for document in ids[part])
        if (share := unknown / max(1, tokens[part])) > _MAX_UNKNOWN:
            what = f"{share:.1%} of the {c.tokenization.units} of the {part} stories are <unk>"
            findings.append(Finding("size", what, "lower --min-count, give smaller --tokens, or give more text"))
        if split.by_story and len(texts[part]) < MIN_DOCUMENTS:
            what = f"{len(texts[part])} {part} stories: too few to compare runs"
            remedy = f"put {MIN_DOCUMENTS} or more there (--split), or cut longer ones"
            findings.append(Finding("size", what, remedy))
    alphabet = set(vocabulary.alphabet)
    for part in PARTS[1:]:
        unseen = {char for _, text in texts[part] for char in normalise(text, c.normalisation)} - alphabet
        if unseen:
            shown = " ".join(repr(character) for character in sorted(unseen)[:10])
            what = f"the {part} stories have characters that do not occur in the training stories: {shown}"
            findings.append(Finding("characters", what, "harmless if rare; else add training stories with them"))
    return findings


def _listed(names: Iterable[str]) -> str:
    distinct = list(dict.fromkeys(names))
    more = f" and {len(distinct) - 5} more" if len(distinct) > 5 else ""
    return f"{'stories' if len(distinct) > 1 else 'the story'} {', '.join(distinct[:5])}{more}"
