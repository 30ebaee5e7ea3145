"""What is learned of a conversation, read back as text."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from tests.trainer.conftest import chat
from worker.trainer.data.render import ChatTemplateError, Example, Message, render

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
    return list(render(with_template(tokenizer, template or tokenizer.chat_template), conversations))


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
