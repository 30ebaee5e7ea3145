"""Conversations → token ids and loss mask, by the tokenizer's own chat template.

The only renderer of chat templates in the project. The text is what `apply_chat_template` makes of the conversation, so
the token ids are those of an inference engine that renders the same template and tokenises without special tokens.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from jinja2 import TemplateError
from numpy.typing import NDArray
from transformers.utils.chat_template_utils import render_jinja_template

Message = dict[str, str]
Span = tuple[int, int]

_GENERATION_MARKER = re.compile(r"\{%-?\s*generation\s*-?%\}")  # as transformers recognises it
_TEXTS_PER_BATCH = 1000  # bounds memory; the tokenizer's threads are busy well below it


class ChatTemplateError(ValueError):
    """The chat template cannot render a conversation, or not so that the model could learn to end its turn."""


@dataclass(frozen=True, slots=True)
class Example:
    """One training sequence: `token_ids` [T] int32 and `loss_mask` [T] bool, true on the tokens that are learned."""

    token_ids: NDArray[np.int32]
    loss_mask: NDArray[np.bool_]


def render(tokenizer: Any, conversations: Iterable[list[Message]]) -> Iterator[list[Example]]:
    """Renders each conversation, in order, into its examples.

    That is one example with every assistant turn in its loss; or, where the template writes an earlier turn otherwise
    than it wrote it when it was the last (Qwen3's drops reasoning), one example per assistant turn, each rendered up to
    that turn with loss on that turn only: so every turn is learned in the text in which it is generated. In the loss
    are a turn's tokens and its end-of-turn token, nothing else. A conversation without an assistant turn that answers
    something has no example.

    `tokenizer` is a fast tokenizer with a chat template. Raises `ChatTemplateError`, naming the row from 1.
    """
    if not tokenizer.chat_template:
        raise ChatTemplateError("The model has no chat template.")
    if not tokenizer.is_fast:
        raise ChatTemplateError("The model's tokenizer has no fast implementation (tokenizer.json).")
    template = _Template(tokenizer)
    numbered = enumerate(conversations, start=1)
    while chunk := list(islice(numbered, _TEXTS_PER_BATCH)):
        plans = [_plan(template, number, messages) for number, messages in chunk]
        examples = _tokenize(tokenizer, [plan for row in plans for plan in row])
        for row in plans:
            yield list(islice(examples, len(row)))


@dataclass(frozen=True, slots=True)
class _Plan:
    """A rendered text and the character spans of it that are learned."""

    text: str
    spans: list[Span]


class _Template:
    """The tokenizer's template, rendered by transformers' own code (what `apply_chat_template` calls)."""

    def __init__(self, tokenizer: Any) -> None:
        self.source: str = tokenizer.get_chat_template()
        self.variables: dict[str, Any] = tokenizer.special_tokens_map
        self.has_markers = bool(_GENERATION_MARKER.search(self.source))
        special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
        self.end_tokens = tuple(special | ({tokenizer.eos_token} if tokenizer.eos_token else set()))

    def render(self, messages: list[Message], *, prompt: bool = False) -> tuple[str, list[Span]]:
        """The text, and the character spans inside `{% generation %}` where the template has these markers."""
        texts, spans = render_jinja_template(
            conversations=[messages],
            chat_template=self.source,
            return_assistant_tokens_mask=self.has_markers,
            add_generation_prompt=prompt,
            **self.variables,
        )
        return texts[0], [tuple(span) for span in spans[0]] if self.has_markers else []


def _plan(template: _Template, number: int, messages: list[Message]) -> list[_Plan]:
    try:
        turns = [i for i, message in enumerate(messages) if message["role"] == "assistant" and i > 0]
        if not turns:
            return []
        full, marked = template.render(messages)
        whole = _whole_conversation(template, messages, turns, full, marked)
        if whole is not None:
            return [whole]
        return [_last_turn(template, messages[: turn + 1]) for turn in turns]
    except (TemplateError, ChatTemplateError, TypeError, ValueError) as error:
        raise ChatTemplateError(f"The chat template failed on row {number}: {error}") from error


def _whole_conversation(
    template: _Template, messages: list[Message], turns: list[int], full: str, marked: list[Span]
) -> _Plan | None:
    """All turns in one text, or None where an earlier turn reads otherwise in it than when it was generated."""
    spans: list[Span] = []
    for turn in turns:
        is_last = turn == len(messages) - 1
        upto = full if is_last else template.render(messages[: turn + 1])[0]
        if template.has_markers:
            if not full.startswith(upto):
                return None
            continue
        prompt = template.render(messages[:turn], prompt=True)[0]
        if not upto.startswith(prompt) or not full.startswith(prompt):
            return None
        end = _end_of_turn(template, upto, len(prompt), len(upto))
        if full[:end] != upto[:end]:
            return None
        spans.append((len(prompt), end))
    if template.has_markers:
        spans = [(start, _end_of_turn(template, full, start, end)) for start, end in marked]
    return _Plan(full, spans)


def _last_turn(template: _Template, messages: list[Message]) -> _Plan:
    """The conversation up to an assistant turn, with loss on that turn only."""
    text, marked = template.render(messages)
    if template.has_markers:
        if not marked:
            raise ChatTemplateError("it puts no text of the assistant's last turn between its generation markers")
        start, end = marked[-1]
        return _Plan(text, [(start, _end_of_turn(template, text, start, end))])
    prompt = template.render(messages[:-1], prompt=True)[0]
    if not text.startswith(prompt):
        raise ChatTemplateError(
            f"its generation prompt ends in {prompt[-40:]!r}, but it writes the assistant's turn otherwise, so the model "
            "would be trained on a text that it is never asked to continue"
        )
    return _Plan(text, [(len(prompt), _end_of_turn(template, text, len(prompt), len(text)))])


def _end_of_turn(template: _Template, text: str, start: int, end: int) -> int:
    """Where the turn that lies in `text[start:end]` ends, its end-of-turn token included, what follows that left out.

    The token is the last thing but white space in the span, or, where markers leave it out, comes right after it.
    """
    inside = len(text[:end].rstrip())
    if inside > start and text.endswith(template.end_tokens, start, inside):
        return inside
    for token in template.end_tokens:
        if text.startswith(token, end):
            return end + len(token)
    raise ChatTemplateError(
        f"it ends the assistant's turn with {text[max(start, end - 40) : end]!r} and no end-of-turn token, so the model "
        "would not learn to stop"
    )


def _tokenize(tokenizer: Any, plans: list[_Plan]) -> Iterator[Example]:
    if not plans:
        return
    encodings = tokenizer([plan.text for plan in plans], add_special_tokens=False).encodings
    for plan, encoding in zip(plans, encodings, strict=True):
        token_ids = np.array(encoding.ids, dtype=np.int32)
        loss_mask = np.zeros(len(token_ids), dtype=np.bool_)
        for start, end in plan.spans:
            # A span ends with a special token, which is one token whatever surrounds it. Its first character may lie in
            # no token (offsets can leave out a leading space), then the next one that does begins the turn.
            last = encoding.char_to_token(end - 1)
            first = next(t for c in range(start, end) if (t := encoding.char_to_token(c)) is not None)
            loss_mask[first : last + 1] = True
        yield Example(token_ids, loss_mask)
