"""Rows of a file of canonical rows, drawn evenly."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow.parquet as pq


def sample(path: str, at_most: int) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number from 0, row), in order: all rows, or `at_most` of them at even distances. Memory is bounded."""
    with pq.ParquetFile(path) as file:
        count = file.metadata.num_rows
        drawn = min(count, at_most)
        wanted = np.arange(drawn) * count // max(drawn, 1)
        first = 0
        for batch in file.iter_batches(batch_size=1000):
            here = wanted[np.searchsorted(wanted, first) : np.searchsorted(wanted, first + len(batch))]
            yield from zip(here.tolist(), batch.take(here - first).to_pylist(), strict=True)
            first += len(batch)
