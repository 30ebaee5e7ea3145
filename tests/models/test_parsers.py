"""Which parsers fit a chat template. That vLLM has them, and what they read: tests/engine/test_vllm_parsers.py."""

from __future__ import annotations

import pytest

from app.models.chat_templates import END_TOKENS, text_of
from app.models.parsers import REASONING_PARSERS, TOOL_PARSERS, reasoning_parser, tool_parser
from tests.models.published import published

TOKENS = {token for parser in (*TOOL_PARSERS, *REASONING_PARSERS) for token in parser.tokens}


@pytest.mark.parametrize(
    ("name", "tools", "reasoning"),
    [
        ("qwen2_5", "hermes", None),
        ("qwen3", "hermes", "qwen3"),
        ("qwen3_instruct_2507", "hermes", None),
        ("qwen3_5_think", "qwen3_coder", "qwen3"),
        ("llama3", None, None),
        ("llama3_1", "llama3_json", None),
        ("llama3_2", "llama3_json", None),
        ("glm4moe", "glm45", "glm45"),
        ("gemma3", None, None),
        ("gemma4_v5", "gemma4", "gemma4"),
        ("phi3_5", None, None),
        ("lfm2_2_5", "lfm2", None),
        # Writes calls of earlier turns, and shows the model no tools.
        ("deepseek_r1_distill", None, "holo2"),
    ],
)
def test_parsers_are_those_of_the_template_s_family(name: str, tools: str | None, reasoning: str | None) -> None:
    template = published(name)
    assert (tool_parser(template), reasoning_parser(template)) == (tools, reasoning)
    assert (tool_parser(template, TOKENS), reasoning_parser(template, TOKENS)) == (tools, reasoning)


@pytest.mark.parametrize("name", END_TOKENS)
def test_templates_by_name_call_no_tools(name: str) -> None:
    assert tool_parser(text_of(name)) is None
    assert (reasoning_parser(text_of(name)) is not None) == (name == "qwen3")


def test_a_parser_whose_tokens_the_tokenizer_lacks_is_not_taken() -> None:
    assert tool_parser(published("llama3_1"), ["<|eot_id|>"]) is None
    assert reasoning_parser(published("qwen3"), ["<think>"]) is None
    assert tool_parser(published("qwen3"), []) == "hermes"
