"""When an answer is right.

Both sides are normalised, close to the convention of VQA evaluation: Unicode NFKC and casefold;
white space collapsed; punctuation off both ends of each word ("yes," is "yes"; "3.5", "it's" and
".5" stay, and so does the minus of "-5"); the articles a, an and the left out. An "A" at the end,
before "and" or "or", or with a comma is a name and stays: "E and A". Unlike there, number words
are not made digits, and contractions are left as they are: list all spellings that are right.

The rule `contains` finds whole words, which white space divides: Chinese or Thai needs `exact`.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

Rule = Literal["exact", "contains"]
ENOUGH = 0.5
"""The share of a caption's words from which on it counts as right."""

ARTICLES = ("a", "an", "the")
JOINING = ("and", "or")


def normalise(text: str) -> str:
    """Write text as answers are compared; see above. Text of nothing but punctuation keeps it."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    words = folded.split()
    kept = [
        _bare(word)
        for word, after in pairwise([*words, JOINING[0]])
        if word not in ARTICLES or after in JOINING
    ]
    return " ".join(filter(None, kept)) or " ".join(words)


def is_right(answer: str, answers: Sequence[str], rule: Rule) -> bool:
    """Judge an answer: whether it is one of the right ones, or has one in it.

    Args:
        answer: What to judge; empty text is never right.
        answers: The right answers; any of them will do.
        rule: "exact", or "contains": all words of a right answer, side by side.
    """
    given = normalise(answer)
    right = [one for one in map(normalise, answers) if one]
    if rule == "exact":
        return given in right
    return any(f" {one} " in f" {given} " for one in right)


def words_right(answer: str, answers: Sequence[str]) -> float:
    """The share of an answer's words that are right, from 0 to 1: for captions.

    Both sides are normalised and taken as multisets of words; the words that they share are divided by
    the words of the longer side, so that neither words that are wrong nor words that are missing are
    free. Of several right answers the nearest counts.
    """
    given = Counter(normalise(answer).split())
    shares = [0.0]
    for right in (Counter(normalise(one).split()) for one in answers):
        shares.append((given & right).total() / max(given.total(), right.total(), 1))
    return max(shares)


def answer_worth(answer: str, answers: Sequence[str], measure: str, rule: Rule) -> float:
    """What an answer is worth, from 0 to 1: right or wrong, or the share of its words that are right.

    Args:
        answer: What to judge.
        answers: The right answers.
        measure: "exact" or "words".
        rule: When an answer is right by the first.
    """
    if measure == "words":
        return words_right(answer, answers)
    return float(is_right(answer, answers, rule))


def _bare(word: str) -> str:
    """A word without punctuation at its ends, but for a number's minus and point."""
    begin, end = 0, len(word)
    while begin < end and _is_mark(word[begin]) and not re.match(r"-?\.?\d", word[begin:]):
        begin += 1
    while end > begin and _is_mark(word[end - 1]):
        end -= 1
    return word[begin:end]


def _is_mark(sign: str) -> bool:
    """Whether a character is punctuation."""
    return unicodedata.category(sign).startswith("P")
