"""Encodings before Unicode, guessed from passages of a text.

Those of languages in the Latin alphabet are told apart by the letters that each language has, those of other scripts by
the frequencies of their characters: the encoding is taken in which the text is most probable. Only what has none of
these scripts is left to charset-normalizer.
"""

from __future__ import annotations

import codecs
import functools
import math
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

HIGH = re.compile(rb"[\x80-\xff]")
# Bytes of a passage. One of this length may end inside a character; a shorter one ends where its line or the file does.
PASSAGE = 4096

# Letters beyond ASCII that languages in the Latin alphabet use.
_WESTERN = [
    "àâæçéèêëîïôœùûü",  # French
    "äöüß",  # German
    "áéíñóúü",  # Spanish
    "àèéìòù",  # Italian
    "àáâãçéêíóôõú",  # Portuguese
    "àçèéíïòóúü",  # Catalan
    "éëïöü",  # Dutch
    "æøåé",  # Danish, Norwegian
    "åäöé",  # Swedish, Finnish
    "áðéíóúýþæö",  # Icelandic
]
_CENTRAL = [
    "ąćęłńóśźż",  # Polish
    "áčďéěíňóřšťúůýž",  # Czech
    "áäčďéíľĺňóôŕšťúýž",  # Slovak
    "áéíóöőúüű",  # Hungarian
    "ăâîşţ",  # Romanian
    "čćđšž",  # Croatian, Slovene
]
# Encodings with their languages and how likely they are before the text is known. Those of UTF-8's century come first.
_LATIN: list[tuple[str, list[str], float]] = [
    ("windows-1252", _WESTERN, 1.0),
    ("windows-1250", _CENTRAL, 0.1),
    ("iso8859-2", _CENTRAL, 0.05),
    ("windows-1254", ["çğıİöşü"], 0.05),
    ("windows-1257", ["ąčęėįšųūž", "āčēģīķļņšūž", "äõöüšž"], 0.03),
    ("iso8859-16", ["ăâîșț"], 0.01),
    ("cp850", _WESTERN, 0.02),
    ("cp852", _CENTRAL, 0.01),
    ("mac-roman", _WESTERN, 0.02),
]
_SIGNS = frozenset("“”‘’„‚‹›«»–—…•·§°©®™€£¥¢†‡¡¿ºª¹²³¼½¾±×÷µ¶´¨¬\xa0\xad")
_QUOTATIONS = frozenset("“”‘’„‚«»–—…")
# Signs that stand beside figures, not letters.
_NUMERIC = frozenset("ºª¹²³¼½¾±×÷µ")
# Signs that may stand between two letters, and those that open a quotation or a question.
_JOINING = frozenset("‘’–—·…\xa0\xad")
_OPENING = frozenset("„‚¿¡")

# Other scripts: their encodings, and groups of characters with the share of a text that each has.
_SCRIPTS: list[tuple[tuple[str, ...], list[tuple[str, float]]]] = [
    (
        ("windows-1251", "koi8-r", "koi8-u", "cp866", "iso8859-5"),
        [("оеаинтсрвл", 0.66), ("кмдпуяіыьгз", 0.24), ("бчйхжшюцщэфъёїєґ", 0.1)],
    ),
    (("windows-1253", "iso8859-7"), [("αοιετσνηυρ", 0.66), ("πκμλωςδγάέίήόύώ", 0.28), ("βζθξφχψϊϋΐΰ", 0.06)]),
    (("windows-1255", "iso8859-8"), [("יוהלארמתבש", 0.72), ("עדחקנפכםגטצזןסףךץ", 0.28)]),
    (("windows-1256", "iso8859-6"), [("اليمنورتبة", 0.66), ("هدعكفسقحجشصطخأإذزضظغثءؤئىآ", 0.34)]),
    (("cp874",), [("านรกเอมงลยว่้ัีด", 0.66), ("ขคจชซญฎฏฐณตถทธบปผพฟภศษสหฮะำิึืุูแโใไๆ็๊์๋", 0.34)]),
    (
        ("cp932", "euc_jp"),
        [("のにたいをとるしはでてがなれからもすっりこだまさきめくあけどよつ、。", 0.5), ("ァ", 0.2), ("亜", 0.3)],
    ),
    (("cp949",), [("이다는을가의에고하지로나를은도들사있어기한서그자리라것인시해만니게수대", 0.45), ("갂", 0.55)]),
    (
        ("gb18030",),
        [("的一是不了人我在有他这中大来上个国到说们为子和你地出道也时年得就那要下以，。", 0.4), ("啊", 0.6)],
    ),
    (
        ("big5",),
        [("的一是不了人我在有他這中大來上個國到說們為子和你地出道也時年得就那要下以，。", 0.4), ("一", 0.6)],
    ),
]
# Groups that a character of the table stands for: the rows of common characters in the standards of these encodings.
_GROUPS = {
    "ァ": ("euc_jp", 0xA4, 0xA6),
    "亜": ("euc_jp", 0xB0, 0xD0),
    "갂": ("cp949", 0xB0, 0xC9),
    "啊": ("gb18030", 0xB0, 0xD8),
    "一": ("big5", 0xA4, 0xC7),
}
# Logarithms of probability: of punctuation, of an unlisted letter, and of any other character; of a capital after a
# small letter, at the beginning of a word, and after another.
_PUNCTUATION, _LETTER, _STRANGE = math.log(0.005), math.log(1e-5), math.log(1e-7)
# The same in the Latin alphabet: of a quotation mark or dash, of another sign, of a letter that the language does not
# have, and of a sign at a wrong place.
_QUOTATION, _SIGN, _FOREIGN, _MISPLACED = math.log(0.2), math.log(0.02), math.log(0.003), math.log(1e-4)
_CAPITAL_INSIDE, _CAPITAL_FIRST, _CAPITAL = math.log(0.001), math.log(0.1), math.log(0.7)
# How much likelier the best encoding has to be than the next, and a text per byte.
_CERTAIN, _LEAST_LIKELY = math.log(50), -6.0
_CERTAIN_LATIN = math.log(3)
# Share of the letters that are ASCII from which on a text is in the Latin alphabet.
_LATIN_SHARE = 0.6
# Names of older encodings on pages and of charset-normalizer, and what contains them.
_LARGER = {
    "ascii": "windows-1252",
    "iso8859-1": "windows-1252",
    "iso8859-9": "windows-1254",
    "gb2312": "gb18030",
    "gbk": "gb18030",
    "shift_jis": "cp932",
    "shift_jis_2004": "cp932",
    "euc_jis_2004": "euc_jp",
    "euc_jisx0213": "euc_jp",
    "euc_kr": "cp949",
    "johab": "cp949",
    "cp1125": "cp866",
    "tis-620": "cp874",
    "iso8859-11": "cp874",
}
# The largest disorder that charset-normalizer finds in text that it is sure of, and how much the next best has more.
_MOST_CHAOS, _LEAD = 0.1, 0.05


@dataclass(frozen=True)
class Guess:
    """A guess.

    Attributes:
        encodings: those that are possible, the likeliest first; one if it is certain.
        reason: what it was recognised by.
        certain: whether the others are much less likely.
    """

    encodings: list[str]
    reason: str = ""
    certain: bool = False


def guess(passages: Sequence[bytes]) -> Guess:
    """Guess an encoding of 8 bits, or a Chinese, Japanese or Korean one, from passages of a text."""
    sample = b"\n".join(passages)
    letters = sum(map(len, re.findall(rb"[A-Za-z]+", sample)))
    high = len(HIGH.findall(sample))
    if letters >= _LATIN_SHARE * (letters + high):
        return _guess_latin(passages, sample)
    return _guess_script(passages, sample)


def _guess_latin(passages: Sequence[bytes], sample: bytes) -> Guess:
    """Guess an encoding of a language in the Latin alphabet."""
    likelihoods: dict[str, float] = {}
    texts: dict[str, str] = {}
    for encoding, languages, share in _LATIN:
        if (text := decoded(passages, encoding)) is not None:
            likelihood = math.log(share) + max(_latin_likelihood(text, letters) for letters in languages)
            same = next((other for other, known in texts.items() if known == text), encoding)
            texts[same], likelihoods[same] = text, max(likelihood, likelihoods.get(same, likelihood))
    ranked = sorted(likelihoods, key=lambda encoding: -likelihoods[encoding])
    if not ranked or likelihoods[ranked[0]] < _FOREIGN * len(HIGH.findall(sample)) + math.log(0.01):
        return Guess(list(dict.fromkeys([*ranked[:2], *_matches(sample)]))[:4])
    if len(ranked) > 1 and likelihoods[ranked[0]] < likelihoods[ranked[1]] + _CERTAIN_LATIN:
        return Guess(ranked[:4])
    return Guess([ranked[0]], "by its letters", certain=True)


def _latin_likelihood(text: str, letters: str) -> float:
    """The logarithm of the probability of a text's characters beyond ASCII in a language with these letters."""
    total = 0.0
    for match in re.finditer("[^\x00-\x7f]", text):
        character, at = match[0], match.start()
        before, after = text[at - 1 : at], text[at + 1 : at + 2]
        if character in _SIGNS:
            beside = before.isalpha() + after.isalpha()
            misplaced = (
                (beside == 2 and character not in _JOINING)
                or (beside > 0 and character in _NUMERIC)
                or (before.isalpha() and character in _OPENING)
            )
            total += _MISPLACED if misplaced else _QUOTATION if character in _QUOTATIONS else _SIGN
        elif character.isalpha():
            total += -math.log(len(letters)) if character.lower() in letters else _FOREIGN
            if character.isupper() and before.islower():
                total += _CAPITAL_INSIDE
        else:
            total += _MISPLACED
    return total


def _guess_script(passages: Sequence[bytes], sample: bytes) -> Guess:
    """Guess an encoding of another script than the Latin one: that in which the text is most probable."""
    likelihoods: dict[str, float] = {}
    texts: dict[str, str] = {}
    for encodings, probabilities in _probabilities():
        for encoding in encodings:
            if (text := decoded(passages, encoding)) is not None and text not in texts.values():
                texts[encoding], likelihoods[encoding] = text, _likelihood(text, probabilities)
    ranked = sorted(likelihoods, key=lambda encoding: -likelihoods[encoding])
    if ranked and likelihoods[ranked[0]] > _LEAST_LIKELY * len(HIGH.findall(sample)):
        if len(ranked) == 1 or likelihoods[ranked[0]] > likelihoods[ranked[1]] + _CERTAIN:
            return Guess([ranked[0]], "by its most frequent characters", certain=True)
        return Guess(ranked[:4])
    matches = _matches(sample)
    possible = [encoding for encoding in matches if (text := decoded(passages, encoding)) is not None]
    if not possible:
        return Guess(ranked[:4])
    best = possible[0]
    rivals = [matches[rival] for rival in possible if decoded(passages, rival) != decoded(passages, best)]
    if matches[best] <= _MOST_CHAOS and min(rivals, default=1.0) >= matches[best] + _LEAD:
        return Guess([best], "by charset-normalizer", certain=True)
    return Guess(possible[:4])


@functools.cache
def _probabilities() -> list[tuple[tuple[str, ...], dict[str, float]]]:
    """For each script its encodings, and the logarithm of the probability of its characters."""
    scripts = []
    for encodings, groups in _SCRIPTS:
        table: dict[str, float] = {}
        for characters, share in reversed(groups):
            members = set(_row_characters(*_GROUPS[characters]) if characters in _GROUPS else characters)
            table |= dict.fromkeys(members, math.log(share / len(members)))
        scripts.append((encodings, table))
    return scripts


def _row_characters(encoding: str, first: int, last: int) -> str:
    rows = [bytes([row, column]) for row in range(first, last) for column in range(0x40, 0xFF)]
    return "".join(code.decode(encoding, "ignore") for code in rows).replace("\ufffd", "")


def _likelihood(text: str, probabilities: Mapping[str, float]) -> float:
    """The logarithm of the probability of a text's characters beyond ASCII."""
    total = 0.0
    for match in re.finditer("[^\x00-\x7f]", text):
        character, before = match[0], text[match.start() - 1 : match.start()]
        known = probabilities.get(character.lower())
        if known is not None:
            total += known
            if character.isupper():
                total += _CAPITAL_INSIDE if before.islower() else _CAPITAL if before.isupper() else _CAPITAL_FIRST
        elif character in _SIGNS or unicodedata.category(character)[0] == "P":
            total += _PUNCTUATION
        else:
            total += _LETTER if character.isalpha() else _STRANGE
    return total


def _matches(sample: bytes) -> dict[str, float]:
    """The encodings that charset-normalizer finds possible, the likeliest first, with the disorder of the text."""
    # Loaded only for a text that is not UTF-8.
    import charset_normalizer

    found: dict[str, float] = {}
    for match in charset_normalizer.from_bytes(sample):
        encoding = known(match.encoding)
        if encoding and not encoding.startswith(("utf-16", "utf-32")):
            found.setdefault(encoding, match.chaos)
    return found


def known(name: str) -> str | None:
    """Python's name of an encoding, or of a larger one that contains it; None if it is not known."""
    try:
        known = codecs.lookup(name.strip().replace(" ", "-")).name
        "".encode(known)
    except (LookupError, ValueError):
        return None
    known = known.replace("cp125", "windows-125")
    return _LARGER.get(known, known)


def decoded(passages: Iterable[bytes], encoding: str) -> str | None:
    """The text of the passages, whose ends may be cut; None if they are not valid in the encoding."""
    try:
        decode = codecs.getincrementaldecoder(encoding)
        return "\n".join(decode().decode(passage, final=len(passage) < PASSAGE) for passage in passages)
    except UnicodeDecodeError:
        return None
