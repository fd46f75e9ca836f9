"""Which first names are fit to be shown to strangers: a name is whatever somebody once typed."""

import re
import unicodedata

LONGEST = 24
"""A longer one would leave the preview of a link no room for what it says."""

_BLANK_LETTERS = frozenset("\u115f\u1160\u3164\uffa0")
"""Fillers of the Korean alphabet: letters that nobody sees."""

_PARTS = re.compile(r"[^\W\d_]+(?:[-'\u2019 ][^\W\d_]+)*\.?")


def fit_to_show(name: str | None) -> str | None:
    """The name, if it is one that a stranger can be shown; else none.

    It has letters, and between them single spaces, hyphens or apostrophes: no address, number, advertisement or sign.
    """
    if name is None:
        return None
    composed = unicodedata.normalize("NFC", name.strip())
    marks = sum(unicodedata.category(character)[0] == "M" for character in composed)
    letters = "".join(character for character in composed if unicodedata.category(character)[0] != "M")
    if not _BLANK_LETTERS.isdisjoint(composed):
        return None
    # Letters of some scripts carry marks; a pile of them is no name.
    if len(composed) > LONGEST or 2 * marks > len(composed) or not _PARTS.fullmatch(letters):
        return None
    return composed
