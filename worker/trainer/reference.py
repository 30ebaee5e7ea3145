"""What the model said before it was trained, which some losses compare with."""

from __future__ import annotations

from dataclasses import replace
from itertools import chain
from typing import Any

from worker.trainer import ranks
from worker.trainer.data.rows import Item
from worker.trainer.measuring import log_probabilities
from worker.trainer.micro_batches import MicroBatches


def with_reference(model: Any, items: list[Item], pad_id: int, micro_batches: MicroBatches) -> list[Item]:
    """The items, each with the log-probabilities of its texts' loss tokens under the model as it is, without dropout.

    Of an attempt that goes on from a checkpoint the model must still be what the first attempt began with.
    """
    singles = [Item((example,)) for item in items for example in item.examples]
    longest_first = sorted(range(len(singles)), key=lambda at: -singles[at].length)
    own = ranks.share(longest_first, lambda at: singles[at].length)
    found = log_probabilities(model, [singles[at] for at in own], pad_id, micro_batches)
    of_all = chain(*ranks.gather(list(zip(own, found, strict=True))))
    in_order = (value for _, value in sorted(of_all))
    return [replace(item, reference=tuple(next(in_order) for _ in item.examples)) for item in items]
