"""Which of vLLM's parsers read a model's tool calls and reasoning, told by its chat template.

The template says how earlier calls and thoughts are written, and so how the model writes them. It says more than the
architecture: fine-tunes keep their base's template, and a template may be replaced.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import NamedTuple


class Parser(NamedTuple):
    """A parser of vLLM 0.32: its name there, texts that a template must all have for it, and tokens without which vLLM
    doesn't start with it."""

    name: str
    marks: tuple[str, ...]
    tokens: tuple[str, ...] = ()


DEEPSEEK_TOKENS = ("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>", "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>")
# The first whose marks are all there is taken, so narrower ones come first.
TOOL_PARSERS = (
    Parser("qwen3_coder", ("<tool_call>", "<function=")),  # Qwen3-Coder, Qwen3.5 and later, Nemotron 3
    Parser("glm45", ("<tool_call>", "<arg_key>")),  # GLM-4.5 and later
    Parser("hermes", ("<tool_call>", "arguments")),  # Qwen2.5, Qwen3, Hermes, Granite 4
    Parser("llama3_json", ("<|start_header_id|>", '"parameters": '), ("<|python_tag|>",)),  # Llama 3.1 to 3.3
    Parser("mistral", ("[TOOL_CALLS]",), ("[TOOL_CALLS]",)),
    Parser("deepseek_v3", (DEEPSEEK_TOKENS[0], "```json"), DEEPSEEK_TOKENS),  # DeepSeek-V3, R1
    Parser("deepseek_v31", (DEEPSEEK_TOKENS[0],), DEEPSEEK_TOKENS),
    Parser("gemma4", ("<|tool_call>",)),
    Parser("lfm2", ("<|tool_call_start|>",), ("<|tool_call_start|>", "<|tool_call_end|>")),
)
THINK_TOKENS = ("<think>", "</think>")
# Each of them can be told by `chat_template_kwargs` that an answer has no reasoning.
REASONING_PARSERS = (
    Parser("deepseek_v3", ("<｜Assistant｜>", "</think>", "not thinking"), THINK_TOKENS),  # V3.1
    Parser("holo2", ("<｜Assistant｜><think>",), THINK_TOKENS),  # R1: deepseek_r1, with that switch
    Parser("glm45", ("[gMASK]", "</think>", "enable_thinking"), THINK_TOKENS),
    Parser("qwen3", ("<|im_start|>", "</think>", "enable_thinking"), THINK_TOKENS),
    Parser("qwen3", ("<|im_start|>", r"assistant\n<think>"), THINK_TOKENS),  # always thinks: Qwen3-Thinking, QwQ
    Parser("gemma4", ("<|channel>",)),
)
WITHOUT_REASONING = {"enable_thinking": False, "thinking": False}
_TOOLS = re.compile(r"\btools\b")


def tool_parser(template: str | None, tokens: Collection[str] | None = None) -> str | None:
    """The name of vLLM's parser for the tool calls of a model with this chat template; None where none is known to fit, or
    the template shows no tools to the model. With `tokens` (the tokenizer's) also None where vLLM wouldn't start."""
    if template is None or not _TOOLS.search(template):
        return None
    return _first(TOOL_PARSERS, template, tokens)


def reasoning_parser(template: str | None, tokens: Collection[str] | None = None) -> str | None:
    """The same for its reasoning; None where its answers have none that could be told apart."""
    return _first(REASONING_PARSERS, template or "", tokens)


def thinks_by_default(template: str) -> bool:
    """Whether a reasoning model with this chat template reasons unless it is told not to."""
    return "enable_thinking is true" not in template  # Qwen3.5's smaller models begin with no thoughts


def _first(parsers: tuple[Parser, ...], template: str, tokens: Collection[str] | None) -> str | None:
    for parser in parsers:
        if all(mark in template for mark in parser.marks):
            fits = tokens is None or set(parser.tokens) <= set(tokens)
            return parser.name if fits else None
    return None
