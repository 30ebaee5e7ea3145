"""Chat templates: those of common families by name, and what a template is handed beside a conversation."""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files
from typing import Annotated, Any

import jinja2
import jinja2.sandbox
from pydantic import AfterValidator, Field, StringConstraints

from app.kit.errors import InvalidValue

# Name → the token that ends a turn; None: the one that the tokenizer ends a text with. Each is a file in templates/.
END_TOKENS: dict[str, str | None] = {
    "chatml": "<|im_end|>",
    "gemma": "<end_of_turn>",
    "glm4": "<|user|>",
    "llama2": "</s>",
    "llama3": "<|eot_id|>",
    "mistral": "</s>",
    "phi3": "<|end|>",
    "phi4": "<|im_end|>",
    "plain": None,
    "qwen3": "<|im_end|>",
}
_NAME = re.compile(r"[A-Za-z0-9._-]+")  # no template of any use is such a word

# What the renderers hand to a template themselves, and what makes `apply_chat_template` do something else.
RESERVED = frozenset({
    "messages", "tools", "documents", "conversation", "conversations", "add_generation_prompt", "continue_final_message",
    "chat_template", "tokenize", "tokenizer_kwargs", "return_dict", "return_tensors", "return_assistant_tokens_mask",
    "padding", "truncation", "max_length", "raise_exception", "strftime_now", "bos_token", "eos_token", "unk_token",
    "sep_token", "pad_token", "cls_token", "mask_token", "additional_special_tokens",
})  # fmt: skip

MAX_TEXT = 200_000
# Beyond this not every reader of JSON has the number as it was written.
_LARGEST = 2**53


def _unreserved(arguments: dict[str, Any]) -> dict[str, Any]:
    if taken := sorted(RESERVED & arguments.keys()):
        raise ValueError(f"'{taken[0]}' is set by what renders the template")
    return arguments


TemplateArguments = Annotated[
    dict[
        Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,63}$")],
        bool
        | Annotated[int, Field(ge=-_LARGEST, le=_LARGEST)]
        | Annotated[float, Field(ge=-_LARGEST, le=_LARGEST)]
        | Annotated[str, StringConstraints(max_length=1000)]
        | None,
    ],
    Field(max_length=32),
    AfterValidator(_unreserved),
]
# What is asked for in the place of a base model's.
OwnTemplate = Annotated[
    str | None,
    Field(
        min_length=1,
        max_length=MAX_TEXT,
        description="Jinja, or the name of a common family's; default: the base model's.",
    ),
]
OwnArguments = Annotated[
    TemplateArguments | None,
    Field(
        description="What the template is handed beside a conversation. Default: the base model's.",
        examples=[{"enable_thinking": False}],
    ),
]


def text_of(given: str) -> str:
    """The template that is meant: the one of this name, or the text itself. Raises `InvalidValue`."""
    if given in END_TOKENS:
        return _named(given)
    if _NAME.fullmatch(given):
        raise InvalidValue(
            f"There is no chat template called '{given}'.",
            param="chat_template",
            hint=f"These have names: {', '.join(END_TOKENS)}. Or send the text of a template (Jinja).",
        )
    _check_syntax(given)
    return given


def require_end(template: str, fitting: dict[str, int] | None, shown: str) -> None:
    """Raises `InvalidValue` where the template is one of ours whose end-of-turn token the model called `shown` has not, so
    that it could not learn to stop. `fitting` are the ends of those that it has by name (`ends_of`); None: not known, and
    left to the training."""
    name = _name_of(template)
    if name is None or fitting is None or name in fitting:
        return
    end = END_TOKENS[name]
    what = f"ends a turn with {end}, which is" if end else "ends a turn with the tokenizer's eos_token, and there is"
    raise InvalidValue(
        f"The chat template '{name}' {what} no single special token in the vocabulary of '{shown}'.",
        param="chat_template",
        hint=f"These end with a token that it has: {', '.join(fitting) or 'none'}. Or send the text of a template (Jinja).",
    )


def ends_of(special: dict[str, int], eos: str | None) -> dict[str, int]:
    """Of the templates that have names: those whose end-of-turn token is one of the special tokens (with their ids), and
    that token's id."""
    tokens = {name: token or eos for name, token in END_TOKENS.items()}
    return {name: special[token] for name, token in tokens.items() if token is not None and token in special}


def end_of(template: str | None, fitting: dict[str, int] | None) -> int | None:
    """The id of the token that ends a turn, where the template is one of ours."""
    name = _name_of(template)
    return (fitting or {}).get(name) if name else None


def _name_of(template: str | None) -> str | None:
    return next((name for name in END_TOKENS if _named(name) == template), None)


@cache
def _named(name: str) -> str:
    return files("app.models").joinpath("templates", f"{name}.jinja").read_text(encoding="utf-8")


def _check_syntax(template: str) -> None:
    """Raises `InvalidValue` where the text is not a Jinja template that a tokenizer could run."""
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(extensions=["jinja2.ext.loopcontrols"])
    # transformers adds this pair of tags; to parse, any block will do in their place.
    plain = template
    for tag in ("generation", "endgeneration"):
        for opening in ("{%", "{%-"):
            for closing in ("%}", "-%}"):
                plain = plain.replace(f"{opening} {tag} {closing}", "")
    try:
        environment.parse(plain)
    except jinja2.TemplateSyntaxError as error:
        raise InvalidValue(
            f"'chat_template' is not a Jinja template: {error.message} (line {error.lineno}).",
            param="chat_template",
            hint="Send the text of the template itself, as in a model's chat_template.jinja, or the name of one.",
        ) from error
    except RecursionError as error:
        raise InvalidValue(
            "'chat_template' is nested too deeply to be read.", param="chat_template", hint="Send a plainer template."
        ) from error
