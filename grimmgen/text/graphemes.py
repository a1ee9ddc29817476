"""Grapheme clusters: the parts of a text that a reader sees as one character (Unicode, UAX #29).

A letter with its combining accents is one cluster, and so is an emoji of several joined by U+200D.
"""

from __future__ import annotations


def cluster_boundary(text: str, at: int) -> int:
    """Return the last boundary between grapheme clusters that is not after position `at`.

    >>> cluster_boundary("cafe\u0301", 4), cluster_boundary("cafe\u0301", 5), cluster_boundary("cafe", 3)
    (3, 5, 3)
    """
    if at >= len(text):
        return len(text)
    if text.isascii() and text[max(0, at - 1) : at + 1] != "\r\n":
        return at
    import regex  # its import takes 25 ms

    # Clusters are found from the start, so the text should be short.
    boundary = 0
    for match in regex.finditer(r"\X", text):
        if match.end() > at:
            break
        boundary = match.end()
    return boundary
