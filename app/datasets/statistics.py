"""What a file's rows are like: turns, characters, labels, scripts, and which rows repeat or contradict others."""

from __future__ import annotations

import unicodedata
from array import array
from collections import Counter
from collections.abc import Iterator
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np

from app.datasets.turns import Row

MAX_LABELS = 20
MAX_LABEL_CHARACTERS = 100
SAMPLED_CHARACTERS = 500_000
LONG_ROW_CHARACTERS = 100_000
# Fingerprints are compared this many at a time, so that memory does not grow with the file.
COMPARED_AT_ONCE = 2_000_000
FINGERPRINT = np.dtype([("prompt", "u8"), ("answer", "u8"), ("line", "u8")])
# Control characters beside tabs and line ends.
CONTROLS = bytes({*range(32), 127} - set(b"\t\n\r"))
CALLS = attrgetter("tool_calls")

MAX_LISTED = 100_000
COMPARISONS = (
    ("repeated_row", "repeats an earlier row"),
    ("contradictory_answers", "answers a prompt that has another answer elsewhere"),
)
MASK = 2**64 - 1


class Statistics:
    """Counts rows as they are read. Fingerprints of them lie in a file at `path`, 24 bytes a row."""

    def __init__(self, path: Path) -> None:
        self.rows = self.turns = self.characters = self.references = 0
        self.labels: Counter[str] | None = Counter()
        self._sample: list[str] = []
        self._sampled = 0
        self._fingerprints = array("Q")
        self._path = path
        path.touch()

    def add(self, line: int, row: Row) -> tuple[int, bool]:
        """Counts a row; returns its characters, and whether there are control characters among them."""
        prompt, answer, texts = _parts(row)
        whole = "".join(texts)
        characters = len(whole)
        self.rows += 1
        self.turns += len(texts)
        self.characters += characters
        self.references += row.reference is not None
        self._fingerprints.extend((hash(prompt) & MASK, hash(answer) & MASK, line))
        if len(self._fingerprints) >= 300_000:
            self._flush()
        if self.labels is not None:
            self._count_label(answer)
        if self._sampled < SAMPLED_CHARACTERS:
            self._sample += texts
            self._sampled += characters
        raw = whole.encode()
        return characters, len(raw.translate(None, CONTROLS)) < len(raw)

    def _count_label(self, answer: Any) -> None:
        assert self.labels is not None
        label = str(answer).lower() if isinstance(answer, bool) else answer
        if isinstance(label, str) and len(label) <= MAX_LABEL_CHARACTERS:
            self.labels[label] += 1
        else:
            self.labels = None
        if self.labels is not None and len(self.labels) > MAX_LABELS:
            self.labels = None

    def _flush(self) -> None:
        with self._path.open("ab") as file:
            self._fingerprints.tofile(file)
        del self._fingerprints[:]

    def duplicates(self) -> Iterator[tuple[str, str, list[int], int]]:
        """Yields (code, message, lines, count) of the rows that repeat an earlier one, then of those whose prompt has
        another answer elsewhere: the first hundred thousand lines in order, and how many there are."""
        self._flush()
        if not self.rows:
            return
        found = np.memmap(self._path, FINGERPRINT, "r")
        parts = -(-len(found) // COMPARED_AT_ONCE)
        compared = [_compare(found[found["prompt"] % parts == part]) for part in range(parts)]
        for (code, message), lines in zip(COMPARISONS, zip(*compared, strict=True), strict=True):
            ordered = np.sort(np.concatenate(lines))
            yield code, message, ordered[:MAX_LISTED].tolist(), len(ordered)

    def scripts(self) -> dict[str, float]:
        """The shares of the scripts of the sample's letters, largest first; those under a hundredth are left out."""
        letters = Counter(character for text in self._sample for character in text if character.isalpha())
        scripts: Counter[str] = Counter()
        for letter, count in letters.items():
            scripts[_script(letter)] += count
        total = scripts.total()
        return {name: round(count / total, 3) for name, count in scripts.most_common() if count >= total / 100}


def _parts(row: Row) -> tuple[Any, Any, list[str]]:
    """A row as (what is asked, what is answered or None where nothing could contradict it, its texts)."""
    if row.messages is None:
        return row.text, None, [row.text or ""]
    contents = [message.content or "" for message in row.messages]
    if row.chosen is not None and row.rejected is not None:
        contents += [message.content or "" for message in (*row.chosen, *row.rejected)]
        return tuple(contents), None, contents
    asked: list[Any] = contents
    if row.tools or any(map(CALLS, row.messages)):
        calls = [call for message in row.messages for call in message.tool_calls or ()]
        asked = [row.tools, *((call.name, call.arguments) for call in calls), *contents]
    if row.label is not None:
        return tuple(asked), row.label, contents
    if row.messages[-1].role == "assistant":
        return tuple(asked[:-1]), asked[-1], contents
    return tuple(asked), row.reference, contents


def _compare(found: Any) -> tuple[Any, Any]:
    """Lines of repeats and of contradictions, among fingerprints that hold every row of each prompt in them."""
    found = found[np.lexsort((found["line"], found["answer"], found["prompt"]))]
    same_prompt = found["prompt"][1:] == found["prompt"][:-1]
    same_row = same_prompt & (found["answer"][1:] == found["answer"][:-1])
    repeated = found["line"][1:][same_row]
    groups = np.concatenate(([0], np.cumsum(~same_prompt)))
    contradictory = np.unique(groups[1:][same_prompt & ~same_row])
    return repeated, found["line"][np.isin(groups, contradictory)]


def _script(letter: str) -> str:
    """The script of a letter, by the first word of its name in Unicode."""
    name = unicodedata.name(letter, "OTHER").split()[0]
    return {"CJK": "Han"}.get(name, name.capitalize())


def texts(row: Row) -> Iterator[str]:
    """Every text of a row."""
    yield from _parts(row)[2]
