"""What the model will see of one row."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from app.datasets.canonical import read_rows
from worker.trainer.data.kinds import examples, plan_row
from worker.trainer.data.render import Template


def preview(
    tokenizer: Any, rows: str, kind: str, row: int, max_length: int, template_arguments: dict[str, Any] | None = None
) -> list[dict[str, Any]]:
    """The sequences of row number `row` (from 0) of a file of canonical rows, cut to `max_length` tokens.

    Of each: part, text, token_ids, tokens (which joined are the text), loss_mask (1 on learned tokens), and cut_tokens (how
    many were cut off). Raises `ChatTemplateError`.
    """
    template = None if kind == "text" else Template(tokenizer, template_arguments)
    parts = plan_row(template, kind, next(read_rows(Path(rows), row)))
    sequences = []
    for (part, plan), example in zip(parts, examples(tokenizer, kind, [plan for _, plan in parts]), strict=True):
        tokens = list(_tokens(tokenizer, plan.text, kind, len(example.token_ids)))[:max_length]
        sequences.append(
            {
                "part": part,
                "text": "".join(tokens),
                "token_ids": example.token_ids[:max_length].tolist(),
                "tokens": tokens,
                "loss_mask": example.loss_mask[:max_length].astype(int).tolist(),
                "cut_tokens": max(0, len(example.token_ids) - max_length),
            }
        )
    return sequences


def _tokens(tokenizer: Any, text: str, kind: str, count: int) -> Iterator[str]:
    """What each token stands for in the text. Of tokens that share a character the first has it."""
    encoding = tokenizer(text, add_special_tokens=kind == "text").encodings[0]
    done = 0
    for (_, end), token, is_added in zip(encoding.offsets, encoding.tokens, encoding.special_tokens_mask, strict=True):
        # The special tokens that a tokenizer adds to a text are nowhere in it.
        end = done if is_added else max(done, end)
        yield token if is_added else text[done:end]
        done = end
    if count > len(encoding.ids):
        yield tokenizer.eos_token
