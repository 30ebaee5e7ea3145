"""What training would make of the rows of a dataset."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby, islice
from typing import Any

import numpy as np

from worker.renderer.overlap import overlap
from worker.renderer.sampling import sample
from worker.trainer.data.kinds import examples, plan_row
from worker.trainer.data.render import ChatTemplateError, Example, Plan, Template
from worker.trainer.data.rows import ends_lost, has_loss

ROWS_RENDERED = 20_000
_ROWS_PER_BATCH = 200
_BINS = 16

Parts = list[tuple[str, Plan]]


def check(
    tokenizer: Any,
    rows: str,
    kind: str,
    max_length: int,
    validation: str | None,
    validation_kind: str | None,
    template_arguments: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Renders a file of canonical rows (at most 20,000 of them, drawn evenly) and counts; compares it with a second one.

    Returns `rows_checked` and the `tokens`, `cut`, `without_loss`, `template` and `overlap` of docs/api.md. Tokens are
    counted as they are before the cut at `max_length`; a row is as long as its longest sequence. Raises
    `ChatTemplateError` where there is no template to render any row with.
    """
    template = None if kind == "text" else Template(tokenizer, template_arguments)
    lengths: list[int] = []
    total = loss = refused = without_loss = cut_rows = cut_tokens = cut_ends = 0
    first_refusal = None
    for number, parts in _rendered(tokenizer, template, rows, kind):
        if isinstance(parts, ChatTemplateError):
            refused += 1
            first_refusal = first_refusal or f"Row {number}: {parts}"
            continue
        found = [example for _, example in parts]
        lost = sum(max(0, len(example.token_ids) - max_length) for example in found)
        lengths.append(max((len(example.token_ids) for example in found), default=0))
        total += sum(len(example.token_ids) for example in found)
        loss += sum(int(example.loss_mask[1:].sum()) for example in found)
        without_loss += kind != "prompts" and not _is_trainable(parts, max_length)
        cut_rows += lost > 0
        cut_tokens += lost
        cut_ends += sum(ends_lost(example, max_length) for example in found)
    return {
        "rows_checked": len(lengths) + refused,
        "tokens": {"total": total, "loss": loss, "loss_share": round(loss / max(total, 1), 4), **_spread(lengths)},
        "cut": {"rows": cut_rows, "tokens": cut_tokens, "end_of_turn": cut_ends},
        "without_loss": without_loss,
        "template": {
            "generation_markers": template is not None and template.has_markers,
            "refused_rows": refused,
            "first_refusal": first_refusal,
        },
        "overlap": overlap(rows, kind, validation, validation_kind) if validation and validation_kind else None,
    }


def _rendered(
    tokenizer: Any, template: Template | None, path: str, kind: str
) -> Iterator[tuple[int, list[tuple[str, Example]] | ChatTemplateError]]:
    """Number and examples (each under the name of its part) of the sampled rows, or why the template refuses the row."""
    sampled = sample(path, ROWS_RENDERED)
    while chunk := list(islice(sampled, _ROWS_PER_BATCH)):
        planned = [(number, _plan(template, kind, row)) for number, row in chunk]
        plans = [plan for _, parts in planned if not isinstance(parts, ChatTemplateError) for _, plan in parts]
        made = examples(tokenizer, kind, plans)
        for number, parts in planned:
            if isinstance(parts, ChatTemplateError):
                yield number, parts
            else:
                yield number, [(part, next(made)) for part, _ in parts]


def _plan(template: Template | None, kind: str, row: dict[str, Any]) -> Parts | ChatTemplateError:
    try:
        return plan_row(template, kind, row)
    except ChatTemplateError as error:
        return error


def _is_trainable(parts: list[tuple[str, Example]], max_length: int) -> bool:
    """Whether every part has a token left to learn: an answer that is compared with nothing teaches nothing."""
    by_part = [list(group) for _, group in groupby(parts, key=lambda part: part[0])]
    return bool(by_part) and all(
        any(has_loss(Example(example.token_ids[:max_length], example.loss_mask[:max_length])) for _, example in group)
        for group in by_part
    )


def _spread(lengths: list[int]) -> dict[str, Any]:
    """How the rows' lengths are distributed: min, mean, percentiles, max, and a histogram of bins of one width."""
    if not lengths:
        return {"min": 0, "mean": 0.0, "p50": 0, "p90": 0, "p99": 0, "max": 0, "histogram": []}
    values = np.array(lengths)
    width = -(-int(values.max() + 1) // _BINS)
    counts = np.bincount(values // width).tolist()
    return {
        "min": int(values.min()),
        "mean": round(float(values.mean()), 1),
        **{f"p{share}": int(np.percentile(values, share, method="nearest")) for share in (50, 90, 99)},
        "max": int(values.max()),
        "histogram": [{"from": i * width, "to": (i + 1) * width, "rows": rows} for i, rows in enumerate(counts)],
    }
