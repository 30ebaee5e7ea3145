"""Which rows make a step: batches of rows of like length, so that little of a batch is padding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler

_BATCHES_SORTED_TOGETHER = 50  # more pads less and shuffles less


class LengthBuckets(Sampler[list[int]]):
    """Batches of row indices: every row once an epoch, in an order fixed by `seed` and epoch.

    Rows are shuffled, cut into groups of fifty batches, sorted by length in each group and cut into batches; then the
    batches are shuffled. One batch, wherever it comes, holds the rows that are left over.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int) -> None:
        self.lengths = np.asarray(lengths)
        self.batch_size = batch_size
        self.drop_last = False  # accelerate reads both
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-len(self.lengths) // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        random = np.random.default_rng([self.seed, self.epoch])
        order = random.permutation(len(self.lengths))
        group_size = _BATCHES_SORTED_TOGETHER * self.batch_size
        batches: list[list[int]] = []
        for start in range(0, len(order), group_size):
            group = order[start : start + group_size]
            group = group[np.argsort(self.lengths[group], kind="stable")]
            batches += [group[i : i + self.batch_size].tolist() for i in range(0, len(group), self.batch_size)]
        yield from (batches[i] for i in random.permutation(len(batches)))
