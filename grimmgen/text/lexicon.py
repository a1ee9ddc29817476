"""The lexicon of a training set: its different words, for generation of known words only.

A word is a run of letters and of the marks on them; whatever else stands between two letters separates words.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable
from itertools import groupby

from grimmgen.configuration import Normalisation
from grimmgen.text.normalisation import Text
from grimmgen.text.pretokens import LONGEST, count_pretokens

# The largest share of the text that the next word may be expected to be new with; see `lexicon`.
_MOST_UNSEEN = 0.2
# Words of a lexicon, at most: the more frequent ones.
LARGEST = 1 << 16
# Characters of a word, at most: a longer run of letters may have been cut.
LONGEST_WORD = LONGEST - 1


def lexicon(texts: Iterable[Text], normalisation: Normalisation) -> list[str]:
    """List the words of a training set, in the order of code points.

    Where new text of the same kind would have many words that the training set has not, the list is empty: in a list
    of names or in a script without spaces, nothing new could be written with known words. That share is estimated
    by the share of words that occur once (Good 1953, "The population frequencies of species", equation 9).

    Args:
        texts: as they were read.
        normalisation: of the texts.

    >>> lexicon(["the king's house is the house of the king's son"] * 2, Normalisation())
    ['house', 'is', 'king', 'of', 's', 'son', 'the']
    """
    counted, _ = count_pretokens(texts, normalisation)
    words = Counter[str]()
    for pretoken, count in counted.items():
        if len(pretoken) <= LONGEST_WORD:
            for is_word, run in groupby(pretoken, is_letter):
                if is_word:
                    words["".join(run)] += count
    once = sum(count == 1 for count in words.values())
    if once > _MOST_UNSEEN * words.total():
        return []
    return sorted(word for word, _ in words.most_common(LARGEST))


def is_letter(character: str) -> bool:
    """Whether a character belongs to a word: a letter, or a mark on one."""
    return unicodedata.category(character)[0] in "LM"
