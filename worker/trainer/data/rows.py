"""Canonical rows in Parquet → what is trained on, cut, counted and split."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from worker.trainer.data.kinds import Parts, render
from worker.trainer.data.render import ChatTemplateError, Example, Row


@dataclass(frozen=True, slots=True)
class Item:
    """What the loss counts once: a text, or of a preference the chosen and the rejected one.

    `good` is a label's. `row` is that of a prompt, by which its answers are judged. `reference`: of each text the log-probability
    of its loss tokens under the model as training begins, where the stage asks for it.
    """

    examples: tuple[Example, ...]
    good: bool = True
    row: Row | None = None
    reference: tuple[float, ...] = ()

    @property
    def length(self) -> int:
        """Its tokens."""
        return sum(len(example.token_ids) for example in self.examples)


@dataclass(slots=True)
class Rows:
    """The items of each row that has any, and what `max_length` did to the rows.

    `read` counts all rows, `cut` those that were too long, `cut_ends` those of them in which an answer lost its
    end-of-turn token, `tokens_lost` the tokens that were cut off, `dropped` the rows that have no loss (left).
    """

    items_by_row: list[list[Item]] = field(default_factory=list)
    read: int = 0
    cut: int = 0
    cut_ends: int = 0
    tokens_lost: int = 0
    dropped: int = 0


def read_rows(
    path: str,
    kind: str,
    tokenizer: Any,
    max_length: int,
    arguments: dict[str, Any] | None = None,
    only: set[int] | None = None,
) -> Rows:
    """Renders a file of canonical rows of this kind, or `only` those of these numbers, from 0; `arguments` are the chat
    template's.

    A text of kind text that is longer than `max_length` tokens becomes several, and nothing of it is lost. All others lose their
    right end, but a prompt, of which a part would ask something else: it is dropped. So is an item without a loss token (left) in
    each of its texts, and a row without an item. Raises `ChatTemplateError`.
    """
    rows = Rows()
    for number, row, parts in render(tokenizer, kind, _numbered(path, only), arguments):
        rows.read += 1
        if kind == "text":
            parts = [(name, piece) for name, example in parts for piece in _pieces(example, max_length)]
        if kind == "prompts":
            parts = [(name, example) for name, example in parts if len(example.token_ids) <= max_length]
        lost = sum(max(0, len(example.token_ids) - max_length) for _, example in parts)
        rows.cut += lost > 0
        rows.tokens_lost += lost
        rows.cut_ends += any(ends_lost(example, max_length) for _, example in parts)
        cut = [
            (name, Example(example.token_ids[:max_length], example.loss_mask[:max_length])) for name, example in parts
        ]
        kept = [
            item for item in _items(kind, number, row, cut) if kind == "prompts" or all(map(has_loss, item.examples))
        ]
        if kept:
            rows.items_by_row.append(kept)
        else:
            rows.dropped += 1
    return rows


def _items(kind: str, number: int, row: Row, parts: Parts) -> list[Item]:
    if kind == "prompts":
        return [Item((example,), row=row) for _, example in parts]
    if kind != "preference":
        return [Item((example,), good=row.get("label", True)) for _, example in parts]
    if not parts:
        return []
    if [name for name, _ in parts] != ["chosen", "rejected"]:
        raise ChatTemplateError(
            f"The chat template failed on row {number}: of an answer of several turns it writes the earlier ones otherwise than "
            "the last, so there is no one text to prefer"
        )
    return [Item(tuple(example for _, example in parts))]


def _pieces(example: Example, max_length: int) -> list[Example]:
    """Consecutive pieces of at most `max_length` tokens. A last piece of one token would have nothing to predict it from."""
    starts = [start for start in range(0, len(example.token_ids), max_length) if start < len(example.token_ids) - 1]
    return [Example(example.token_ids[i : i + max_length], example.loss_mask[i : i + max_length]) for i in starts]


def has_loss(example: Example) -> bool:
    """Whether anything is learned from it. The first token has nothing before it that could predict it."""
    return bool(example.loss_mask[1:].any())


def ends_lost(example: Example, max_length: int) -> int:
    """How many answers of an uncut example have their end-of-turn token beyond `max_length` tokens."""
    mask = example.loss_mask
    is_end = mask & ~np.append(mask[1:], False)
    return int(is_end[max_length:].sum())


def split(rows: list[list[Item]], fraction: float, seed: int) -> tuple[list[list[Item]], list[list[Item]]]:
    """(rows to train on, rows held out): a share of the rows, at least one, drawn by the seed; file order in both."""
    count = len(rows)
    held_out = set(np.random.default_rng(seed).permutation(count)[: max(1, round(fraction * count))].tolist())
    train = [row for i, row in enumerate(rows) if i not in held_out]
    return train, [row for i, row in enumerate(rows) if i in held_out]


def draw(path: str, count: int, seed: int) -> set[int]:
    """The numbers of so many rows of a file, or of all that there are, drawn by the seed."""
    with pq.ParquetFile(path) as file:
        there: int = file.metadata.num_rows
    return set(np.random.default_rng(seed).permutation(there)[:count].tolist())


def _numbered(path: str, only: set[int] | None) -> Iterator[tuple[int, Row]]:
    """The rows of a file, or only these, each with its number, from 1. Row groups without any of them are not read."""
    begin = 0
    with pq.ParquetFile(path) as file:
        for group in range(file.num_row_groups):
            end = begin + file.metadata.row_group(group).num_rows
            wanted = None if only is None else sorted(number for number in only if begin <= number < end)
            if wanted is None or wanted:
                yield from _of_group(file, group, begin, wanted)
            begin = end


def _of_group(file: pq.ParquetFile, group: int, begin: int, wanted: list[int] | None) -> Iterator[tuple[int, Row]]:
    for batch in file.iter_batches(batch_size=1000, row_groups=[group]):
        end = begin + batch.num_rows
        here = range(begin, end) if wanted is None else [number for number in wanted if begin <= number < end]
        rows = batch if wanted is None else batch.take(pa.array([number - begin for number in here], pa.int64()))
        yield from zip((number + 1 for number in here), rows.to_pylist(), strict=True)
        begin = end
