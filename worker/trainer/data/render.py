"""Conversations → token ids and loss mask, by the tokenizer's own chat template.

The only renderer of chat templates in the project. The text is what `apply_chat_template` makes of the conversation, so
the token ids are those of an inference engine that renders the same template and tokenises without special tokens.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from jinja2 import TemplateError
from numpy.typing import NDArray
from transformers.utils.chat_template_utils import render_jinja_template

from worker.trainer.data.conversation import Message, iterates_over_content, template_messages, template_tools

Row = dict[str, Any]
Span = tuple[int, int]

_GENERATION_MARKER = re.compile(r"\{%-?\s*generation\s*-?%\}")  # as transformers recognises it


class ChatTemplateError(ValueError):
    """The chat template cannot render a conversation, or not so that the model could learn to end its turn."""


@contextmanager
def _refusals() -> Iterator[None]:
    """A template is a stranger's program: whatever it cannot do with a conversation is a refusal of that conversation."""
    try:
        yield
    except (
        TemplateError,
        AttributeError,
        TypeError,
        ValueError,
        LookupError,
        ArithmeticError,
        RecursionError,
    ) as error:
        raise ChatTemplateError(str(error) or type(error).__name__) from error


@dataclass(frozen=True, slots=True)
class Example:
    """One training sequence: `token_ids` [T] int32 and `loss_mask` [T] bool, true on the tokens that are learned."""

    token_ids: NDArray[np.int32]
    loss_mask: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Plan:
    """A rendered text and the character spans of it that are learned, each from a turn's begin to its end token's."""

    text: str
    spans: list[Span]


class Template:
    """The tokenizer's template, or the given text in its place, rendered by transformers' own code (what
    `apply_chat_template` calls) with these arguments beside the conversation.

    `tokenizer` is a fast tokenizer with a chat template, where none is given; else raises `ChatTemplateError`.
    """

    def __init__(self, tokenizer: Any, arguments: dict[str, Any] | None = None, given: str | None = None) -> None:
        if not (given or tokenizer.chat_template):
            raise ChatTemplateError("The model has no chat template.")
        if not tokenizer.is_fast:
            raise ChatTemplateError("The model's tokenizer has no fast implementation (tokenizer.json).")
        with _refusals():
            self.source: str = given or tokenizer.get_chat_template()
            self.wants_parts = iterates_over_content(self.source)
        self.tokenizer = tokenizer
        self.variables: dict[str, Any] = tokenizer.special_tokens_map | (arguments or {})
        self.has_markers = bool(_GENERATION_MARKER.search(self.source))
        special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
        self.end_tokens = tuple(special | ({tokenizer.eos_token} if tokenizer.eos_token else set()))


class _Conversation:
    """A conversation of canonical messages, of which a template renders as much as is asked for."""

    def __init__(self, template: Template, messages: list[Message], tools: str | None) -> None:
        self.template = template
        self.messages = template_messages(messages, as_parts=template.wants_parts)
        self.tools = template_tools(tools)

    def render(self, count: int, *, prompt: bool = False) -> tuple[str, list[Span]]:
        """The text of the first messages, and the spans inside `{% generation %}` where the template has these markers."""
        with _refusals():
            texts, spans = render_jinja_template(
                conversations=[self.messages[:count]],
                tools=self.tools,
                chat_template=self.template.source,
                return_assistant_tokens_mask=self.template.has_markers,
                add_generation_prompt=prompt,
                **self.template.variables,
            )
        return texts[0], [tuple(span) for span in spans[0]] if self.template.has_markers else []


def plan(template: Template, messages: list[Message], tools: str | None, start: int = 0) -> list[Plan]:
    """A conversation's texts, and what is learned of them: the assistant's turns from number `start` on, of weight 1.

    That is one text with all of these turns in its loss; or, where the template writes an earlier turn otherwise than it
    wrote it when it was the last (Qwen3's drops reasoning), one text per turn, each rendered up to that turn with loss on
    that turn only: so every turn is learned in the text in which it is generated. In the loss are a turn's tokens and its
    end-of-turn token, nothing else. Without a turn to learn that answers something there is no text.

    Raises `ChatTemplateError`.
    """
    turns = [i for i, message in enumerate(messages) if message["role"] == "assistant" and i > 0]
    learned = [i for i in turns if i >= start and messages[i].get("weight") != 0]
    if not learned:
        return []
    conversation = _Conversation(template, messages, tools)
    whole = _marked(conversation, turns, learned) if template.has_markers else _prompted(conversation, learned)
    return [whole] if whole is not None else [_last_turn(conversation, turn) for turn in learned]


def plan_prompt(template: Template, messages: list[Message], tools: str | None) -> Plan:
    """What the model is asked to answer: the conversation and the generation prompt. Raises `ChatTemplateError`."""
    return Plan(_Conversation(template, messages, tools).render(len(messages), prompt=True)[0], [])


def render_answered(template: Template, messages: list[Message], tools: str | None) -> list[int]:
    """The token ids of a conversation that ends with the assistant's turn, as training renders it. Raises
    `ChatTemplateError`."""
    plans = plan(template, messages, tools, len(messages) - 1)
    if not plans:
        raise ChatTemplateError("the last message is not the assistant's answer to another one")
    return list(template.tokenizer(plans[0].text, add_special_tokens=False).input_ids)


def _prompted(conversation: _Conversation, learned: list[int]) -> Plan | None:
    """All turns in one text, a turn being what the template adds to the generation prompt. None where it reads otherwise
    in the whole text than when it was generated."""
    full, _ = conversation.render(len(conversation.messages))
    spans: list[Span] = []
    for turn in learned:
        upto = conversation.render(turn + 1)[0] if turn + 1 < len(conversation.messages) else full
        prompt, _ = conversation.render(turn, prompt=True)
        if not upto.startswith(prompt) or not full.startswith(prompt):
            return None
        end = _end_of_turn(conversation.template, upto, len(prompt), len(upto))
        if full[:end] != upto[:end]:
            return None
        spans.append((len(prompt), end))
    return Plan(full, spans)


def _marked(conversation: _Conversation, turns: list[int], learned: list[int]) -> Plan | None:
    """All turns in one text, a turn being what the template marks of it. None where an earlier text is no prefix."""
    full, marked = conversation.render(len(conversation.messages))
    spans: list[Span] = []
    for turn in turns:
        upto = conversation.render(turn + 1)[0] if turn + 1 < len(conversation.messages) else full
        if not full.startswith(upto):
            return None
        own = [span for span in marked if span[0] < len(upto)]
        marked = marked[len(own) :]
        if turn in learned and own:
            spans += _with_end(conversation.template, full, own)
    return Plan(full, spans)


def _last_turn(conversation: _Conversation, turn: int) -> Plan:
    """The conversation up to an assistant's turn, with loss on that turn only."""
    text, marked = conversation.render(turn + 1)
    if conversation.template.has_markers:
        if not marked:
            raise ChatTemplateError("it puts no text of the assistant's last turn between its generation markers")
        before, _ = conversation.render(turn)
        own = [span for span in marked if text.startswith(before) and span[0] >= len(before)]
        return Plan(text, _with_end(conversation.template, text, own or marked[-1:]))
    prompt, _ = conversation.render(turn, prompt=True)
    if not text.startswith(prompt):
        raise ChatTemplateError(
            f"its generation prompt ends in {prompt[-40:]!r}, but it writes the assistant's turn otherwise, so the model "
            "would be trained on a text that it is never asked to continue"
        )
    return Plan(text, [(len(prompt), _end_of_turn(conversation.template, text, len(prompt), len(text)))])


def _with_end(template: Template, text: str, spans: list[Span]) -> list[Span]:
    """A turn's marked spans, the last of them up to its end-of-turn token."""
    start, end = spans[-1]
    return [*spans[:-1], (start, _end_of_turn(template, text, start, end))]


def _end_of_turn(template: Template, text: str, start: int, end: int) -> int:
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


def tokenize(tokenizer: Any, plans: list[Plan]) -> Iterator[Example]:
    """The example of each plan, in order, uncut."""
    if not plans:
        return
    encodings = tokenizer([plan.text for plan in plans], add_special_tokens=False).encodings
    for plan, encoding in zip(plans, encodings, strict=True):
        token_ids = np.array(encoding.ids, dtype=np.int32)
        loss_mask = np.zeros(len(token_ids), dtype=np.bool_)
        for start, end in plan.spans:
            # An end-of-turn token is one token whatever surrounds it. The first and last characters of a span may lie in
            # no token (offsets can leave out a space), then the next ones that do bound it.
            first = _token(encoding, range(start, end))
            last = _token(encoding, range(end - 1, start - 1, -1))
            if first is not None and last is not None:
                loss_mask[first : last + 1] = True
        yield Example(token_ids, loss_mask)


def _token(encoding: Any, characters: range) -> int | None:
    """The first token that one of the characters lies in."""
    return next((token for c in characters if (token := encoding.char_to_token(c)) is not None), None)
