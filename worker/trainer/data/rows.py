"""Canonical rows in Parquet → rendered examples, cut, counted and split."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from worker.trainer.data.render import Example, Message, render


@dataclass(slots=True)
class Rows:
    """The examples of each row that has any, and how many rows were cut at `max_length` or dropped for want of loss."""

    examples_by_row: list[list[Example]] = field(default_factory=list)
    cut: int = 0
    dropped: int = 0


def read_rows(path: str, tokenizer: Any, max_length: int) -> Rows:
    """Renders a file of canonical rows.

    Examples longer than `max_length` tokens lose their right end. An example without a loss token (left) is dropped, and
    a row without an example. Raises `ChatTemplateError`.
    """
    rows = Rows()
    for rendered in render(tokenizer, _messages(path)):
        rows.cut += any(len(example.token_ids) > max_length for example in rendered)
        cut = [Example(example.token_ids[:max_length], example.loss_mask[:max_length]) for example in rendered]
        # The first token has nothing before it that could predict it.
        kept = [example for example in cut if example.loss_mask[1:].any()]
        if kept:
            rows.examples_by_row.append(kept)
        else:
            rows.dropped += 1
    return rows


def split(rows: list[list[Example]], fraction: float, seed: int) -> tuple[list[list[Example]], list[list[Example]]]:
    """(rows to train on, rows held out): a share of the rows, at least one, drawn by the seed; file order in both."""
    count = len(rows)
    held_out = set(np.random.default_rng(seed).permutation(count)[: max(1, round(fraction * count))].tolist())
    train = [row for i, row in enumerate(rows) if i not in held_out]
    return train, [row for i, row in enumerate(rows) if i in held_out]


def _messages(path: str) -> Iterator[list[Message]]:
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=1000, columns=["messages"]):
            yield from batch.column("messages").to_pylist()
