"""What training renders is what vLLM renders: token for token, with system, tools, tool calls and reasoning."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from app.datasets.canonical import SCHEMAS
from app.models.chat_templates import END_TOKENS, text_of
from tests.engine.conftest import Served, needs_vllm
from tests.trainer.test_render import ASKED, CALLED, CHATML, CHATML_MARKED, LLAMA3, PARTS, QWEN3, TALK, TOOLS, turn
from worker.renderer.preview import preview
from worker.trainer.data.conversation import Message
from worker.trainer.data.kinds import examples, render
from worker.trainer.data.render import Plan, Template, plan_prompt
from worker.trainer.data.tokenizer import load_tokenizer

pytestmark = needs_vllm

# Shows whatever a template could see of the messages, and in which order.
EVERYTHING = (
    "{{ tools | tojson }}{% for m in messages %}<|im_start|>{{ m.role }} {{ m.content | tojson }} {{ m.name | tojson }} "
    "{{ m.tool_calls | tojson }} {{ m.tool_call_id | tojson }} {{ m.reasoning_content | tojson }} "
    "{{ m.reasoning | tojson }} {{ m.tool_calls is defined }} {{ m.name is defined }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant {% endif %}"
).replace("| tojson }}", "| default('absent') | tojson }}")
TEMPLATES = {
    "qwen 3": QWEN3,
    "chatml": CHATML,
    "marked": CHATML_MARKED,
    "llama 3": LLAMA3,
    "parts": PARTS,
    "everything": EVERYTHING,
}

SYSTEM = turn("system", "Be short. 简短。", name="rules")
THOUGHT = turn("assistant", "3 °C.\n", reasoning_content="\nHm, it is autumn. 🙂\n")
CONVERSATION = [
    SYSTEM,
    *TALK,
    turn("user", "And how warm?", name="Ann"),
    THOUGHT,
    turn("user", "Thanks!"),
    turn("assistant", "Bye."),
]


@pytest.fixture
def prompt_ids(served: Served) -> Callable[..., list[int]]:
    """vLLM's token ids of a chat request of canonical messages, by Qwen 3's template unless it brings another: what
    `/v1/chat/completions` says it was asked."""

    def ask(messages: list[Message], tools: str | None, **body: Any) -> list[int]:
        sent = {"model": "model_base", "messages": [wire(message) for message in messages], "max_tokens": 1}
        sent |= {"tools": json.loads(tools), "tool_choice": "none"} if tools else {}
        sent |= {"chat_template": QWEN3, "return_token_ids": True}
        answer = httpx.post(f"{served.url}/v1/chat/completions", json=sent | body, timeout=120)
        assert answer.status_code == 200, answer.text
        found: list[int] = answer.json()["prompt_token_ids"]
        return found

    return ask


def wire(message: Message) -> dict[str, Any]:
    """A canonical message as OpenAI's API takes it."""
    sent = {key: value for key, value in message.items() if value is not None and key not in ("weight", "tool_calls")}
    if message["tool_calls"]:
        sent["tool_calls"] = [
            {
                "id": call["id"],
                "type": "function",
                "function": {"name": call["name"], "arguments": call["arguments"]},
            }
            for call in message["tool_calls"]
        ]
    return sent | {"content": message["content"]}


def tokenizer_of(base: Path, template: str) -> Any:
    return load_tokenizer(str(base), template, False)


def ids_of(tokenizer: Any, plan: Plan) -> list[int]:
    found: list[int] = next(examples(tokenizer, "prompts", [plan])).token_ids.tolist()
    return found


@pytest.mark.parametrize("tools", [None, TOOLS], ids=["without tools", "with tools"])
@pytest.mark.parametrize("name", TEMPLATES)
def test_every_prompt_of_a_conversation_has_the_ids_of_the_engine(
    base: Path, prompt_ids: Callable[..., list[int]], name: str, tools: str | None
) -> None:
    tokenizer = tokenizer_of(base, TEMPLATES[name])
    for end in [i for i, message in enumerate(CONVERSATION) if message["role"] == "assistant"]:
        ours = ids_of(tokenizer, plan_prompt(Template(tokenizer), CONVERSATION[:end], tools))
        theirs = prompt_ids(CONVERSATION[:end], tools, chat_template=TEMPLATES[name])
        assert ours == theirs, tokenizer.decode(theirs)


@pytest.mark.parametrize("name", ["qwen 3", "chatml", "marked", "llama 3", "parts"])
def test_every_learned_turn_continues_the_engine_s_prompt(
    base: Path, prompt_ids: Callable[..., list[int]], name: str
) -> None:
    tokenizer = tokenizer_of(base, TEMPLATES[name])
    [(_, _, parts)] = render(tokenizer, "chat", [(1, {"messages": CONVERSATION, "tools": TOOLS})])
    found = [example for _, example in parts]
    turns = [i for i, message in enumerate(CONVERSATION) if message["role"] == "assistant"]
    for number, end in enumerate(turns):
        example = found[number if len(found) > 1 else 0]
        prompt = prompt_ids(CONVERSATION[:end], TOOLS, chat_template=TEMPLATES[name])
        assert example.token_ids[: len(prompt)].tolist() == prompt
        assert example.loss_mask[len(prompt)]
        assert not example.loss_mask[len(prompt) - 1]


@pytest.mark.parametrize("arguments", [{}, {"enable_thinking": False}], ids=["as it is", "no thinking"])
@pytest.mark.parametrize("name", END_TOKENS)
def test_a_named_template_renders_the_same_here_and_there(
    base: Path, prompt_ids: Callable[..., list[int]], name: str, arguments: dict[str, Any]
) -> None:
    tokenizer = tokenizer_of(base, text_of(name))
    messages = [SYSTEM, ASKED, THOUGHT, turn("user", "And how warm?")]
    ours = ids_of(tokenizer, plan_prompt(Template(tokenizer, arguments), messages, None))
    theirs = prompt_ids(messages, None, chat_template=text_of(name), chat_template_kwargs=arguments)
    assert ours == theirs, tokenizer.decode(theirs)


def test_a_turn_without_reasoning_continues_the_prompt_with_thinking_off(
    base: Path, prompt_ids: Callable[..., list[int]]
) -> None:
    tokenizer = tokenizer_of(base, QWEN3)
    row = {"messages": [*CALLED, turn("assistant", "It rains.")], "tools": TOOLS}
    [(_, _, parts)] = render(tokenizer, "chat", [(1, row)])
    found = [example for _, example in parts]
    off = prompt_ids(CALLED, TOOLS, chat_template_kwargs={"enable_thinking": False})
    on = prompt_ids(CALLED, TOOLS, chat_template_kwargs={"enable_thinking": True})
    assert found[-1].token_ids[: len(off)].tolist() == off
    assert off[: len(on)] == on
    assert len(off) > len(on)


def test_a_preview_shows_the_engine_s_ids(base: Path, prompt_ids: Callable[..., list[int]], tmp_path: Path) -> None:
    path = tmp_path / "rows"
    pq.write_table(pa.Table.from_pylist([{"messages": CONVERSATION[:-1], "tools": TOOLS}], SCHEMAS["prompts"]), path)
    [sequence] = preview(tokenizer_of(base, QWEN3), str(path), "prompts", 0, 4096)
    assert sequence["token_ids"] == prompt_ids(CONVERSATION[:-1], TOOLS)
