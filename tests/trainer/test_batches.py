from __future__ import annotations

import numpy as np

from worker.trainer.data.batches import LengthBuckets

LENGTHS = np.random.default_rng(1).integers(5, 400, size=5003).tolist()


def epoch(number: int, seed: int = 7) -> list[list[int]]:
    sampler = LengthBuckets(LENGTHS, 16, seed)
    sampler.set_epoch(number)
    return list(sampler)


def test_an_epoch_has_every_row_once_in_full_batches_but_one() -> None:
    batches = epoch(0)
    assert sorted(i for batch in batches for i in batch) == list(range(len(LENGTHS)))
    assert sorted(map(len, batches))[:2] == [len(LENGTHS) % 16, 16]
    assert len(batches) == len(LengthBuckets(LENGTHS, 16, 7))


def test_the_order_is_fixed_by_seed_and_epoch() -> None:
    assert epoch(1) == epoch(1)
    assert epoch(1) != epoch(0)
    assert epoch(1) != epoch(1, seed=8)


def test_less_than_a_twentieth_of_a_batch_is_padding_and_lengths_come_mixed() -> None:
    batches = epoch(0)
    longest = [max(LENGTHS[i] for i in batch) for batch in batches]
    padded = sum(width * len(batch) for width, batch in zip(longest, batches, strict=True))
    assert padded < 1.05 * sum(LENGTHS)
    first, second = longest[: len(longest) // 2], longest[len(longest) // 2 :]
    assert abs(np.mean(first) - np.mean(second)) < 40
