"""What is learned of a conversation, read back as text."""

from __future__ import annotations

import copy
import re
import unicodedata
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken

from app.models.chat_templates import END_TOKENS, text_of
from tests.trainer.conftest import chat
from worker.trainer.data.conversation import Message
from worker.trainer.data.kinds import render
from worker.trainer.data.render import ChatTemplateError, Example, Template, plan, plan_prompt, tokenize

PLAIN = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MARKED = PLAIN.replace(
    "{{ m['content'] }}<|im_end|>\n",
    "{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }}<|im_end|>{% endgeneration %}"
    "{% else %}{{ m['content'] }}<|im_end|>{% endif %}{{ '\n' }}",
)
MARKED_WITHOUT_END = MARKED.replace("<|im_end|>{% endgeneration %}", "{% endgeneration %}<|im_end|>")
MARKED_WITH_NEWLINE = MARKED.replace("<|im_end|>{% endgeneration %}", "<|im_end|>{{ '\n' }}{% endgeneration %}")
# As Qwen3's: what an earlier turn thought is left out.
STRIPS_REASONING = PLAIN.replace(
    "{{ m['content'] }}", "{{ m['content'] if loop.last else m['content'].split('</think>')[-1] }}"
)


def with_template(tokenizer: Any, template: str) -> Any:
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = template
    return tokenizer


def examples(tokenizer: Any, template: str | None, *conversations: list[Message]) -> list[list[Example]]:
    rows = [{"messages": messages, "tools": None} for messages in conversations]
    rendered = render(with_template(tokenizer, template or tokenizer.chat_template), "chat", enumerate(rows, 1))
    return [[example for _, example in parts] for _, _, parts in rendered]


def learned(tokenizer: Any, example: Example) -> list[str]:
    """The runs of learned tokens as text."""
    runs: list[list[int]] = []
    for i, (token, is_learned) in enumerate(zip(example.token_ids, example.loss_mask, strict=True)):
        if is_learned and i and example.loss_mask[i - 1]:
            runs[-1].append(int(token))
        elif is_learned:
            runs.append([int(token)])
    return [tokenizer.decode(run) for run in runs]


TEMPLATES = [None, PLAIN, MARKED, MARKED_WITHOUT_END, MARKED_WITH_NEWLINE]
NAMES = ["demo", "plain", "marked", "marked without end", "marked with newline"]


@pytest.mark.parametrize("template", TEMPLATES, ids=NAMES)
def test_assistant_turns_and_their_end_tokens_are_learned_and_nothing_else(
    tokenizer: Any, template: str | None
) -> None:
    [[example]] = examples(tokenizer, template, chat("Hello.", "Hi, you.", "Bye?", "Bye! 再见", system="Be kind."))
    assert learned(tokenizer, example) == ["Hi, you.<|im_end|>", "Bye! 再见<|im_end|>"]


# Every character there is, but those that could make up a special token.
SAID = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="<|>"), min_size=1, max_size=40).filter(
    str.strip
)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    said=st.lists(SAID, min_size=2, max_size=6).filter(lambda said: len(said) % 2 == 0),
    template=st.sampled_from(TEMPLATES),
)
def test_what_is_learned_decodes_to_what_was_said(tokenizer: Any, said: list[str], template: str | None) -> None:
    [[example]] = examples(tokenizer, template, chat(*said))
    # The tokenizer normalises to NFC, as Qwen2's does.
    answers = [unicodedata.normalize("NFC", f"{answer}<|im_end|>") for answer in said[1::2]]
    assert learned(tokenizer, example) == answers
    other = with_template(tokenizer, template or tokenizer.chat_template)
    text = other.apply_chat_template(chat(*said), tokenize=False)
    assert tokenizer.decode(example.token_ids) == unicodedata.normalize("NFC", text)


@pytest.mark.parametrize("template", TEMPLATES, ids=NAMES)
def test_ids_are_those_of_the_whole_rendered_text(tokenizer: Any, template: str | None) -> None:
    conversation = chat("\n\n  a <|im_end|> b", " 1\n\n", "ünï 🙂", "\tx", system="")
    [[example]] = examples(tokenizer, template, conversation)
    other = with_template(tokenizer, template or tokenizer.chat_template)
    text = other.apply_chat_template(conversation, tokenize=False)
    assert example.token_ids.tolist() == other(text, add_special_tokens=False)["input_ids"]


def test_the_prompt_before_a_learned_turn_is_what_an_engine_would_be_asked(tokenizer: Any) -> None:
    conversation = chat("One?", "1", "Two?", "2")
    [[example]] = examples(tokenizer, PLAIN, conversation)
    asked = with_template(tokenizer, PLAIN).apply_chat_template(conversation[:3], add_generation_prompt=True)[
        "input_ids"
    ]
    assert example.token_ids[: len(asked)].tolist() == asked
    assert example.loss_mask[len(asked)]
    assert not example.loss_mask[len(asked) - 1]


@pytest.mark.parametrize("marked", [False, True])
def test_a_template_that_strips_reasoning_gives_an_example_per_turn(tokenizer: Any, marked: bool) -> None:
    template = STRIPS_REASONING
    if marked:
        begin, end = "{{ m['content'] if", "[-1] }}"
        template = template.replace(begin, "{% generation %}" + begin).replace(end, end + "{% endgeneration %}")
    conversation = chat("One?", "<think>a</think>1", "Two?", "<think>b</think>2")
    [turns] = examples(tokenizer, template, conversation)
    assert [learned(tokenizer, example) for example in turns] == [
        ["<think>a</think>1<|im_end|>"],
        ["<think>b</think>2<|im_end|>"],
    ]
    assert "<think>a" not in tokenizer.decode(turns[1].token_ids)


def test_conversations_keep_their_order_and_number_over_batches(tokenizer: Any) -> None:
    conversations = [chat(f"{i}?", f"{i}") if i % 3 else chat(f"{i}?") for i in range(2100)]
    found = examples(tokenizer, PLAIN, *conversations)
    assert [[learned(tokenizer, e) for e in row] for row in found] == [
        [[f"{i}<|im_end|>"]] if i % 3 else [] for i in range(2100)
    ]


def test_a_template_without_end_of_turn_token_is_refused(tokenizer: Any) -> None:
    template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}" + (
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    with pytest.raises(ChatTemplateError, match=r"row 1.*'Hi\.\\n' and no end-of-turn token"):
        examples(tokenizer, template, chat("Hello.", "Hi."))


def test_a_refusal_of_the_template_is_told_in_its_words_with_the_row(tokenizer: Any) -> None:
    template = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('No system role here.') }}{% endif %}" + PLAIN
    )
    with pytest.raises(ChatTemplateError, match=r"row 2.*No system role here\."):
        examples(tokenizer, template, chat("a", "b"), chat("a", "b", system="c"))


def test_a_generation_prompt_that_the_template_does_not_write_itself_is_refused(tokenizer: Any) -> None:
    template = PLAIN.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")
    with pytest.raises(ChatTemplateError, match="generation prompt"):
        examples(tokenizer, template, chat("a", "b"))


# The shapes of real templates, cut down to what they do with tools, tool calls and reasoning.
CALLS = (
    '{% for c in m.tool_calls or [] %}<tool_call>\n{"name": "{{ c.function.name }}", '
    '"arguments": {{ c.function.arguments | tojson }}}\n</tool_call>{% endfor %}'
)
CHATML = (
    "{% if tools %}<|im_start|>system\n{% for t in tools %}{{ t | tojson }}\n{% endfor %}<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}" + CALLS + "<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CHATML_MARKED = (
    "{% for m in messages %}{% if m.role == 'assistant' %}<|im_start|>assistant\n{% generation %}{{ m.content }}"
    "{% endgeneration %}{% if m.tool_calls %}{% generation %}" + CALLS + "{% endgeneration %}{% endif %}"
    "{% generation %}<|im_end|>{% endgeneration %}\n"
    "{% else %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Llama 3's: content trimmed, a tool call in place of content, tools in the first user's turn, tool answers as `ipython`.
LLAMA3 = (
    "{% set ns = namespace(tools=tools) %}{% for m in messages %}"
    "{% if m.tool_calls is defined %}<|im_start|>assistant\n\n"
    '{"name": "{{ m.tool_calls[0].function.name }}", "parameters": {{ m.tool_calls[0].function.arguments | tojson }}}'
    "<|im_end|>{% elif m.role == 'tool' %}<|im_start|>ipython\n\n{{ m.content | tojson }}<|im_end|>"
    "{% else %}<|im_start|>{{ m.role }}\n\n{% if m.role == 'user' and ns.tools %}"
    "{% for t in ns.tools %}{{ t | tojson(indent=4) }}{% endfor %}{% set ns.tools = none %}{% endif %}"
    "{{ m.content | trim }}<|im_end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n\n{% endif %}"
)
# Qwen3's: reasoning is written in the turns after the last user's turn only, and an empty one in the last turn.
QWEN3 = (
    "{% set ns = namespace(last=-1) %}{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}"
    "{% endfor %}{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and loop.index0 > ns.last and (loop.last or m.reasoning_content) %}"
    "<think>\n{{ (m.reasoning_content or '') | trim }}\n</think>\n\n{% endif %}{{ m.content }}"
    + CALLS
    + "<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
# As Qwen3-VL's and Gemma 3's: content is text, or a list of parts.
PARTS = CHATML.replace(
    "{{ m.content }}",
    "{% if m.content is string %}STRING{{ m.content }}{% else %}{% for p in m.content %}{{ p.text }}{% endfor %}{% endif %}",
)
TOOLS = (
    '[{"function": {"parameters": {"type": "object", "properties": {"city": {}}}, "name": "weather", "other": 1}, '
    '"type": "function", "other": 2}]'
)
TOOLS_SEEN = (
    '{"type": "function", "function": {"name": "weather", "description": null, '
    '"parameters": {"type": "object", "properties": {"city": {}}}}}'
)


def turn(role: str, content: str | None = None, **fields: Any) -> Message:
    """A canonical turn with every key, as Parquet has it."""
    absent = ("reasoning_content", "tool_calls", "tool_call_id", "name")
    return {"role": role, "content": content} | dict.fromkeys(absent) | {"weight": 1} | fields


def call(city: str) -> list[dict[str, Any]]:
    return [{"name": "weather", "arguments": f'{{"city":"{city}", "unit": "°C"}}', "id": "call_1"}]


ASKED = turn("user", "How is it in Oslo?")
CALLED = [
    ASKED,
    turn("assistant", None, tool_calls=call("Oslo")),
    turn("tool", "Rain.", tool_call_id="call_1", name="w"),
]
TALK = [*CALLED, turn("assistant", "It rains.")]
OSLO = '{"city": "Oslo", "unit": "°C"}'


def rendered(tokenizer: Any, template: str, messages: list[Message], tools: str | None = None) -> list[Example]:
    [(_, _, parts)] = render(with_template(tokenizer, template), "chat", [(1, {"messages": messages, "tools": tools})])
    return [example for _, example in parts]


@pytest.mark.parametrize(
    ("template", "learned_call"),
    [
        (CHATML, f'<tool_call>\n{{"name": "weather", "arguments": {OSLO}}}\n</tool_call><|im_end|>'),
        (CHATML_MARKED, f'<tool_call>\n{{"name": "weather", "arguments": {OSLO}}}\n</tool_call><|im_end|>'),
        (LLAMA3, f'{{"name": "weather", "parameters": {OSLO}}}<|im_end|>'),
    ],
    ids=["chatml", "marked in pieces", "llama 3"],
)
def test_tool_calls_are_learned_and_tool_answers_are_not(tokenizer: Any, template: str, learned_call: str) -> None:
    [example] = rendered(tokenizer, template, TALK)
    assert learned(tokenizer, example) == [learned_call, "It rains.<|im_end|>"]


def test_reasoning_is_learned_where_the_template_writes_it(tokenizer: Any) -> None:
    thought = turn("assistant", "Dry.", reasoning_content="Hm, 3 °C.")
    first, second = rendered(tokenizer, QWEN3, [*TALK, turn("user", "And now?"), thought])[-2:]
    assert learned(tokenizer, first)[-1] == "<think>\n\n</think>\n\nIt rains.<|im_end|>"
    assert learned(tokenizer, second) == ["<think>\nHm, 3 °C.\n</think>\n\nDry.<|im_end|>"]


@pytest.mark.parametrize(
    "template", [CHATML, CHATML_MARKED, LLAMA3, QWEN3], ids=["chatml", "marked", "llama 3", "qwen 3"]
)
def test_a_turn_of_weight_0_is_shown_and_not_learned(tokenizer: Any, template: str) -> None:
    messages = [ASKED, turn("assistant", "Snow?", weight=0), turn("user", "Sure?"), turn("assistant", "Rain.")]
    examples = rendered(tokenizer, template, messages)
    assert [text.removeprefix("<think>\n\n</think>\n\n") for e in examples for text in learned(tokenizer, e)] == [
        "Rain.<|im_end|>"
    ]
    assert "Snow?" in tokenizer.decode(examples[0].token_ids)


def test_a_conversation_of_weight_0_alone_has_no_example(tokenizer: Any) -> None:
    assert rendered(tokenizer, CHATML, [ASKED, turn("assistant", "Snow.", weight=0)]) == []


def test_tools_are_shown_as_the_engine_shows_them(tokenizer: Any) -> None:
    [example] = rendered(tokenizer, CHATML, TALK, TOOLS)
    assert tokenizer.decode(example.token_ids).startswith(f"<|im_start|>system\n{TOOLS_SEEN}\n<|im_end|>\n")


def test_a_template_that_loops_over_content_gets_parts(tokenizer: Any) -> None:
    [example] = rendered(tokenizer, PARTS, TALK)
    text = tokenizer.decode(example.token_ids)
    assert text.count("STRING") == 1  # a tool's answer stays a string
    assert "STRINGRain." in text
    assert learned(tokenizer, example)[1] == "It rains.<|im_end|>"
    assert learned(tokenizer, example)[0].startswith("<tool_call>")


def test_absent_keys_are_left_out(tokenizer: Any) -> None:
    template = PLAIN.replace("{{ m['content'] }}", "{{ m.keys() | list | join(' ') }}")
    messages = [
        turn("user", "a", name="Ann"),
        turn("assistant", tool_calls=call("x")),
        turn("tool", "b"),
        turn("assistant", "c"),
    ]
    [example] = rendered(tokenizer, template, messages)
    text = tokenizer.decode(example.token_ids)
    assert re.findall(r"\n(role .*?)<", text) == [
        "role content name",
        "role content tool_calls",
        "role content",
        "role content",
    ]


# What a family's conversation of two questions looks like, as its model's makers publish it; what is learned of it is in «».
NAMED = {
    "chatml": "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi?<|im_end|>\n<|im_start|>assistant\n«Hello.<|im_end|>»\n"
    "<|im_start|>user\nBye?<|im_end|>\n<|im_start|>assistant\n«Bye.<|im_end|>»\n",
    "gemma": "<bos><start_of_turn>user\nBe kind.\n\nHi?<end_of_turn>\n<start_of_turn>model\n«Hello.<end_of_turn>»\n"
    "<start_of_turn>user\nBye?<end_of_turn>\n<start_of_turn>model\n«Bye.<end_of_turn>»\n",
    "glm4": "[gMASK]<sop><|system|>\nBe kind.<|user|>\nHi?<|assistant|>\n«Hello.<|user|>»\nBye?<|assistant|>\n«Bye.<|user|>»",
    "llama2": "<s>[INST] <<SYS>>\nBe kind.\n<</SYS>>\n\nHi? [/INST]« Hello. </s>»<s>[INST] Bye? [/INST]« Bye. </s>»",
    "llama3": "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe kind.<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nHi?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n«Hello.<|eot_id|>»"
    "<|start_header_id|>user<|end_header_id|>\n\nBye?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n«Bye.<|eot_id|>»",
    "mistral": "<s>[INST] Be kind.\n\nHi?[/INST]« Hello.</s>»[INST] Bye?[/INST]« Bye.</s>»",
    "phi3": "<|system|>\nBe kind.<|end|>\n<|user|>\nHi?<|end|>\n<|assistant|>\n«Hello.<|end|>»\n"
    "<|user|>\nBye?<|end|>\n<|assistant|>\n«Bye.<|end|>»\n",
    "phi4": "<|im_start|>system<|im_sep|>Be kind.<|im_end|><|im_start|>user<|im_sep|>Hi?<|im_end|>"
    "<|im_start|>assistant<|im_sep|>«Hello.<|im_end|>»<|im_start|>user<|im_sep|>Bye?<|im_end|>"
    "<|im_start|>assistant<|im_sep|>«Bye.<|im_end|>»",
    "plain": "System:\nBe kind.\n\nUser:\nHi?\n\nAssistant:\n«Hello.<|im_end|>»\n\nUser:\nBye?\n\nAssistant:\n«Bye.<|im_end|>»\n\n",
    # The second of two texts: of the first question's answer the reasoning is left out.
    "qwen3": "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi?<|im_end|>\n<|im_start|>assistant\nHello.<|im_end|>\n"
    "<|im_start|>user\nBye?<|im_end|>\n<|im_start|>assistant\n«<think>\n\n</think>\n\nBye.<|im_end|>»\n",
}
BEGINS = {"gemma": "<bos>", "llama2": "<s>", "llama3": "<|begin_of_text|>", "mistral": "<s>"}
SPOKEN = chat("Hi?", "Hello.", "Bye?", "Bye.", system="Be kind.")


def named(tokenizer: Any, name: str) -> Any:
    """A tokenizer with the template of this name and the tokens that a model of the family has."""
    made = with_template(tokenizer, text_of(name))
    end = END_TOKENS[name]
    made.add_special_tokens({"bos_token": BEGINS[name]} if name in BEGINS else {})
    made.add_tokens([AddedToken(end, special=True)] if end else [])
    return made


@pytest.mark.parametrize("name", END_TOKENS)
def test_a_named_template_is_its_family_s(tokenizer: Any, name: str) -> None:
    made = named(tokenizer, name)
    *_, planned = plan(Template(made), SPOKEN, None)
    text = planned.text
    for start, end in reversed(planned.spans):
        text = f"{text[:start]}«{text[start:end]}»{text[end:]}"
    assert text == NAMED[name]
    # The prompt that an engine is asked is what training shows before each answer, token for token.
    [[*_, example]] = (
        [each for _, each in parts] for _, _, parts in render(made, "chat", [(1, {"messages": SPOKEN, "tools": None})])
    )
    asked = next(tokenize(made, [plan_prompt(Template(made, {"enable_thinking": True}), SPOKEN[:-1], None)])).token_ids
    assert example.token_ids[: len(asked)].tolist() == asked.tolist()
    assert example.loss_mask[len(asked)]
    ends = example.token_ids[example.loss_mask][-1]
    assert made.convert_ids_to_tokens(int(ends)) == (END_TOKENS[name] or tokenizer.eos_token)


@pytest.mark.parametrize("name", END_TOKENS)
def test_a_named_template_refuses_tools(tokenizer: Any, name: str) -> None:
    for messages, tools in ((TALK, None), ([ASKED, turn("assistant", "Rain.")], TOOLS)):
        with pytest.raises(ChatTemplateError, match="knows no tools"):
            plan(Template(named(tokenizer, name)), messages, tools)


def test_a_template_is_handed_its_arguments(tokenizer: Any) -> None:
    made = named(tokenizer, "qwen3")
    for arguments, seen in (
        ({}, "<think>\n\n</think>\n\nHello.<|im_end|>"),
        ({"enable_thinking": False}, "Hello.<|im_end|>"),
    ):
        [planned] = plan(Template(made, arguments), SPOKEN[:3], None)
        assert [planned.text[start:end] for start, end in planned.spans] == [seen]
    loud = "{{ messages[0].content if not louder else messages[0].content | upper }}"
    assert plan_prompt(Template(made, {"louder": True}, loud), chat("a"), None).text == "A"
