"""Rows of a dataset that are, or nearly are, in another one."""

from __future__ import annotations

import hashlib
import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

from worker.renderer.sampling import sample

# Bounds on time and memory: rows are drawn evenly above these, and a row's first units stand for it.
ROWS_COMPARED = 200_000
VALIDATION_ROWS_COMPARED = 20_000
_UNITS = 2_000
_CANDIDATES = 200
_PAIRS_SHOWN = 100

_GRAM = 5
_NEAR = 0.8
# A word; or a character of a script that puts no spaces between words: Thai, Lao, Myanmar, Khmer, Han, Kana.
_SPACELESS = r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_UNIT = re.compile(rf"[{_SPACELESS}]|[^\s{_SPACELESS}]+")

Shingles = NDArray[np.int64]


def overlap(rows: str, kind: str, validation: str, validation_kind: str) -> dict[str, Any]:
    """Compares the texts of two files of canonical rows, white space and case folded, of chats all but the system's turns.

    Returns how many rows are equal to a row of `validation` (`exact`), how many others have a Jaccard similarity of their
    5-grams with one of at least 0.8 (`near`), and the first hundred `pairs`.
    """
    others = _Others(validation, validation_kind)
    exact = near = 0
    pairs: list[dict[str, Any]] = []
    for number, row in sample(rows, ROWS_COMPARED):
        found = others.find(_folded(kind, row))
        if found is None:
            continue
        other, similarity, is_exact = found
        exact += is_exact
        near += not is_exact
        if len(pairs) < _PAIRS_SHOWN:
            pairs.append({"row": number, "validation_row": other, "similarity": round(similarity, 4)})
    return {"exact": exact, "near": near, "pairs": pairs}


class _Others:
    """The rows that are compared with: an index from a shingle to the different texts that have it."""

    def __init__(self, path: str, kind: str) -> None:
        self._first_row: dict[bytes, int] = {}
        self._texts: list[Shingles] = []
        for number, row in sample(path, VALIDATION_ROWS_COMPARED):
            text = _folded(kind, row)
            if self._first_row.setdefault(_digest(text), number) == number:
                self._texts.append(_shingles(text))
        self._numbers = list(self._first_row.values())
        sizes = [len(shingles) for shingles in self._texts]
        owners = np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)
        shingles = np.concatenate([*self._texts, np.empty(0, np.int64)])
        order = np.argsort(shingles, kind="stable")
        self._shingles, self._owners = shingles[order], owners[order]

    def find(self, text: str) -> tuple[int, float, bool] | None:
        """(row, similarity, whether it is equal) of the first row that equals the text, or else is near it; None without."""
        if (equal := self._first_row.get(_digest(text))) is not None:
            return equal, 1.0, True
        own = _shingles(text)
        for other in self._candidates(own):
            common = len(np.intersect1d(own, self._texts[other], assume_unique=True))
            similarity = common / (len(own) + len(self._texts[other]) - common)
            if similarity >= _NEAR:
                return self._numbers[other], similarity, False
        return None

    def _candidates(self, own: Shingles) -> list[int]:
        """The texts that may be near: those with one of the shingles that are rarest here.

        A near text lacks at most a fifth of `own`, so that it has at least one of any fifth and one more. Where very many
        have one (texts from one mould) only the first of them are looked at: else the work would grow with the square.
        """
        missing = len(own) // 5
        starts = np.searchsorted(self._shingles, own, side="left")
        counts = np.searchsorted(self._shingles, own, side="right") - starts
        if np.count_nonzero(counts == 0) > missing:
            return []
        rarest = np.argsort(counts, kind="stable")[: missing + 1]
        owners = [self._owners[starts[i] : starts[i] + min(counts[i], _CANDIDATES)] for i in rarest]
        return np.unique(np.concatenate(owners))[:_CANDIDATES].tolist() if owners else []


def _shingles(text: str) -> Shingles:
    """The different 5-grams of the text's units, sorted, each as its hash; the whole of a shorter text."""
    units = [match.group() for match, _ in zip(_UNIT.finditer(text), range(_UNITS), strict=False)]
    grams = {hash(tuple(units[i : i + _GRAM])) for i in range(max(1, len(units) - _GRAM + 1))}
    return np.sort(np.fromiter(grams, np.int64, len(grams)))


def _digest(text: str) -> bytes:
    # Canonical text is valid Unicode, but for a lone surrogate that a JSON escape may have made.
    return hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=16).digest()


def _folded(kind: str, row: dict[str, Any]) -> str:
    return " ".join(" ".join(_texts(kind, row)).casefold().split())


def _texts(kind: str, row: dict[str, Any]) -> list[str]:
    """What a row says. A system's turn is left out: the same one in every row would make short rows alike."""
    if kind == "text":
        return [row["text"]]
    turns = [turn for part in ("messages", "chosen", "rejected") for turn in row.get(part) or ()]
    texts = []
    for turn in turns:
        if turn["role"] != "system":
            calls = [text for call in turn["tool_calls"] or () for text in (call["name"], call["arguments"])]
            texts += [text for text in (turn["reasoning_content"], turn["content"], *calls) if text]
    return texts
