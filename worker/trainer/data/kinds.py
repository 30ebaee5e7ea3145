"""A canonical row of any kind → the texts that a model is shown of it, and their examples."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import numpy as np

from worker.trainer.data.render import ChatTemplateError, Example, Plan, Row, Template, plan, plan_prompt, tokenize

Parts = list[tuple[str, Example]]

_ROWS_PER_BATCH = 1000  # bounds memory; the tokenizer's threads are busy well below it


def plan_row(template: Template | None, kind: str, row: Row) -> list[tuple[str, Plan]]:
    """What is rendered of a row, each under the name of its part; `template` is None for kind text alone.

    chat and labels: conversation (of labels only the last turn is learned: it is what the label judges); preference:
    chosen and rejected, each after the prompt, which is not learned; prompts: prompt, with the generation prompt and nothing
    to learn; text: text. A conversation is more than one text where `plan` says so. Raises `ChatTemplateError`.
    """
    if template is None:
        return [("text", Plan(row["text"], []))]
    messages, tools = row["messages"], row["tools"]
    if kind == "prompts":
        return [("prompt", plan_prompt(template, messages, tools))]
    if kind == "preference":
        parts = ("chosen", "rejected")
        return [(p, each) for p in parts for each in plan(template, messages + row[p], tools, len(messages))]
    start = len(messages) - 1 if kind == "labels" else 0
    return [("conversation", each) for each in plan(template, messages, tools, start)]


def render(
    tokenizer: Any, kind: str, numbered: Iterable[tuple[int, Row]], arguments: dict[str, Any] | None = None
) -> Iterator[tuple[int, Row, Parts]]:
    """Renders each row (docs/formats.md) of a kind, in order, into the examples of its parts, uncut: see `plan_row`.

    Rows come and go with their numbers. `tokenizer` is a fast tokenizer, with a chat template for all kinds but text, which is
    handed `arguments`. Raises `ChatTemplateError`, naming the row's number.
    """
    template = None if kind == "text" else Template(tokenizer, arguments)
    numbered = iter(numbered)
    while chunk := list(islice(numbered, _ROWS_PER_BATCH)):
        planned = [_plan_numbered(template, kind, number, row) for number, row in chunk]
        made = examples(tokenizer, kind, [plan for parts in planned for _, plan in parts])
        for (number, row), parts in zip(chunk, planned, strict=True):
            yield number, row, [(part, next(made)) for part, _ in parts]


def _plan_numbered(template: Template | None, kind: str, number: int, row: Row) -> list[tuple[str, Plan]]:
    try:
        return plan_row(template, kind, row)
    except ChatTemplateError as error:
        raise ChatTemplateError(f"The chat template failed on row {number}: {error}") from error


def examples(tokenizer: Any, kind: str, plans: list[Plan]) -> Iterator[Example]:
    """The example of each plan of rows of this kind, in order, uncut."""
    return _tokenize_texts(tokenizer, plans) if kind == "text" else tokenize(tokenizer, plans)


def _tokenize_texts(tokenizer: Any, plans: list[Plan]) -> Iterator[Example]:
    """Texts as in pretraining: the special tokens that the tokenizer adds itself, and one that ends the text; everything is
    learned but the first token, which has nothing before it."""
    for encoding in tokenizer([each.text for each in plans]).encodings if plans else ():
        ends = [] if tokenizer.eos_token_id in (None, encoding.ids[-1]) else [tokenizer.eos_token_id]
        loss_mask = np.ones(len(encoding.ids) + len(ends), dtype=np.bool_)
        loss_mask[0] = False
        yield Example(np.array(encoding.ids + ends, dtype=np.int32), loss_mask)
