"""Whether a job's rows would fail the check that the trainer makes of them, before it starts."""

from __future__ import annotations

import math
from typing import Any

from app.jobs.spec import TrainerSpec
from worker.trainer.data import dataset
from worker.trainer.data.rows import Rows, draw

# How sure a sample must be: a job that would pass is refused once in a hundred at most.
_DOUBT = 0.01
# Of the choice of rows: the same job is judged alike each time.
_SEED = 0

Sizes = dict[str, int | None]


def judge(tokenizer: Any, spec: dict[str, Any], sizes: Sizes) -> None:
    """Raises the `Failure` that the trainer of this `TrainerSpec` would raise of its rows, if that is sure.

    `sizes` says of the files `rows` and `validation_rows` how many of their rows to look at; None: all. If all rows of both are
    looked at, this is the trainer's own check. Of a sample a template's refusal and a missing reference are proof, and so is a
    share of rows that lose their end, if it is above what the job allows by more than chance explains.
    """
    asked = TrainerSpec.model_validate(spec)
    settings, most_cut = asked.spec.hyperparameters, asked.spec.check.max_cut_share
    if not any(sizes.values()):
        dataset.check(dataset.read(asked, tokenizer), settings.max_length, most_cut)
        return
    found = _look(asked, tokenizer, asked.rows, "dataset", sizes["rows"])
    if proves_more(found.cut_ends, found.read, most_cut):
        share, of = found.cut_ends / found.read, f"{found.read} rows drawn from all"
        raise dataset.too_many_cut(share, found.cut, found.tokens_lost, settings.max_length, most_cut, of)
    if asked.validation_rows:
        size = sizes["validation_rows"]
        found = _look(asked, tokenizer, asked.validation_rows, "validation.dataset", size)
        if size is None and not found.items_by_row:
            raise dataset.none_to_validate_on(found, dataset.most_tokens(settings))


def _look(asked: TrainerSpec, tokenizer: Any, path: str, param: str, size: int | None) -> Rows:
    drawn = None if size is None else draw(path, size, _SEED)
    found = dataset.read_file(asked, tokenizer, path, param, drawn)
    dataset.require_references(asked.spec.hyperparameters, [item for row in found.items_by_row for item in row])
    return found


def proves_more(hits: int, drawn: int, share: float) -> bool:
    """Whether `hits` of `drawn` rows prove that more than this share of all rows are such: with that share exactly, so many or
    more would be drawn less than once in a hundred times (the one-sided bound of Clopper and Pearson, 1934)."""
    if share <= 0 or share >= 1:
        return share <= 0 < hits
    if hits <= share * drawn:
        return False
    return sum(_binomial(count, drawn, share) for count in range(hits, drawn + 1)) < _DOUBT


def _binomial(hits: int, drawn: int, share: float) -> float:
    ways = math.lgamma(drawn + 1) - math.lgamma(hits + 1) - math.lgamma(drawn - hits + 1)
    return math.exp(ways + hits * math.log(share) + (drawn - hits) * math.log1p(-share))
