"""Canonical rows in Parquet → rendered examples, cut, counted and split."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from worker.trainer.data.render import Example, Row, render


@dataclass(slots=True)
class Rows:
    """The examples of each row that has any, and what `max_length` did to the rows.

    `read` counts all rows, `cut` those that were too long, `cut_ends` those of them in which an answer lost its
    end-of-turn token, `tokens_lost` the tokens that were cut off, `dropped` the rows that have no loss (left).
    """

    examples_by_row: list[list[Example]] = field(default_factory=list)
    read: int = 0
    cut: int = 0
    cut_ends: int = 0
    tokens_lost: int = 0
    dropped: int = 0


def read_rows(path: str, tokenizer: Any, max_length: int) -> Rows:
    """Renders a file of canonical rows of kind chat.

    Examples longer than `max_length` tokens lose their right end. An example without a loss token (left) is dropped, and
    a row without an example. Raises `ChatTemplateError`.
    """
    rows = Rows()
    for rendered in render(tokenizer, _rows(path)):
        rows.read += 1
        lost = sum(max(0, len(example.token_ids) - max_length) for example in rendered)
        rows.cut += lost > 0
        rows.tokens_lost += lost
        rows.cut_ends += any(ends_lost(example, max_length) for example in rendered)
        cut = [Example(example.token_ids[:max_length], example.loss_mask[:max_length]) for example in rendered]
        kept = [example for example in cut if has_loss(example)]
        if kept:
            rows.examples_by_row.append(kept)
        else:
            rows.dropped += 1
    return rows


def has_loss(example: Example) -> bool:
    """Whether anything is learned from it. The first token has nothing before it that could predict it."""
    return bool(example.loss_mask[1:].any())


def ends_lost(example: Example, max_length: int) -> int:
    """How many answers of an uncut example have their end-of-turn token beyond `max_length` tokens."""
    mask = example.loss_mask
    is_end = mask & ~np.append(mask[1:], False)
    return int(is_end[max_length:].sum())


def split(rows: list[list[Example]], fraction: float, seed: int) -> tuple[list[list[Example]], list[list[Example]]]:
    """(rows to train on, rows held out): a share of the rows, at least one, drawn by the seed; file order in both."""
    count = len(rows)
    held_out = set(np.random.default_rng(seed).permutation(count)[: max(1, round(fraction * count))].tolist())
    train = [row for i, row in enumerate(rows) if i not in held_out]
    return train, [row for i, row in enumerate(rows) if i in held_out]


def _rows(path: str) -> Iterator[Row]:
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=1000, columns=["messages", "tools"]):
            yield from batch.to_pylist()
