"""Judging generated answers: exact match and VQA accuracy, with the published normalisation.

References:
    Antol et al., "VQA: Visual Question Answering", ICCV 2015, section 3: an answer counts as
    ``min(1, n / 3)`` where n of the human answers agree. The normalisation is that of EvalAI, which
    lmms-eval uses: punctuation, articles, number words and contractions.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

__all__ = ["CONTRACTIONS", "exact_match", "leave_one_out", "normalise", "vqa_accuracy"]

_PUNCTUATION: Final = ';/[]"{}()=+\\_-><@`,?!'
_PERIOD: Final = re.compile(r"\.(?!\d)")
_DIGIT_COMMA: Final = re.compile(r"(?<=\d),+(?=\d)")
_ARTICLES: Final = frozenset(("a", "an", "the"))
_NUMBERS: Final = {
    word: str(n)
    for n, word in enumerate("zero one two three four five six seven eight nine ten".split())
} | {"none": "0"}
_WRITTEN: Final = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't
haven't he'd he'd've he's how'd how'll how's I'd've I'm I've isn't it'd it'd've it'll ma'am mightn't
mightn't've might've mustn't must've needn't not've o'clock oughtn't 'ow's'at shan't she'd've
should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've
someone'll someone's something'd something'd've something'll that's there'd there'd've there're
there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're
what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're
why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're
you've
""".split()


def _without_one(word: str) -> list[str]:
    """Return a contraction with each of its apostrophes missing in turn."""
    return [word[:i] + word[i + 1 :] for i, letter in enumerate(word) if letter == "'"]


CONTRACTIONS: Final = {short: word for word in _WRITTEN for short in _without_one(word)} | {
    "let's": "let's",
    "she's": "she's",
    "somebody'd": "somebodyd",  # as published
}
"""A contraction with an apostrophe missing -> the contraction."""


def normalise(text: str) -> str:
    """Return an answer as VQA compares it.

    Example:
        >>> normalise("The  two cats, isnt it?"), normalise("1,000"), normalise("3.5.")
        ("2 cats isn't it", '1000', '3.5')
    """
    text = text.replace("\n", " ").replace("\t", " ").strip()
    drop_all = _DIGIT_COMMA.search(text) is not None
    out = text
    for mark in _PUNCTUATION:
        beside = f"{mark} " in text or f" {mark}" in text
        out = out.replace(mark, "" if beside or drop_all else " ")
    words = [_NUMBERS.get(w, w) for w in _PERIOD.sub("", out).lower().split()]
    return " ".join(CONTRACTIONS.get(w, w) for w in words if w not in _ARTICLES)


def _agreeing(answer: str, answers: Sequence[str]) -> int:
    said = normalise(answer)
    return sum(normalise(a) == said for a in answers)


def exact_match(answer: str, answers: Sequence[str]) -> float:
    """Return 1 if an answer is one of the right ones, blanks at the ends aside, otherwise 0.

    Example:
        >>> exact_match(" red ", ["blue", "red"]), exact_match("Red", ["red"])
        (1.0, 0.0)
    """
    return float(answer.strip() in {a.strip() for a in answers})


def vqa_accuracy(answer: str, answers: Sequence[str]) -> float:
    """Return ``min(1, n / 3)`` where n of the human answers agree after normalisation.

    Args:
        answer: what was generated.
        answers: what people said, usually ten.

    Example:
        >>> round(vqa_accuracy("a Cat.", ["cat"] * 2 + ["dog"] * 8), 3)
        0.667
    """
    return min(1.0, _agreeing(answer, answers) / 3)


def leave_one_out(answer: str, answers: Sequence[str]) -> float:
    """Return the mean of `vqa_accuracy` over all sets that leave one person out.

    The official evaluation code and lmms-eval report this, to be comparable with people.

    Args:
        answer: what was generated.
        answers: what people said, at least two.

    Example:
        >>> round(leave_one_out("cat", ["cat"] * 2 + ["dog"] * 8), 3)
        0.6
    """
    n, people = _agreeing(answer, answers), len(answers)
    mine, others = min(1.0, (n - 1) / 3), min(1.0, n / 3)
    return (n * mine + (people - n) * others) / people
