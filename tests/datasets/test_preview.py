"""What the model will see of a row: every kind, what is learned of it, and the ways to be refused."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import psutil
import pytest

from app.datasets import rendering
from tests.conftest import DEMO_BASE, eventually
from tests.datasets.helpers import CHAT, helpers, refusal

Upload = Callable[..., httpx.Response]
Preview = Callable[..., httpx.Response]

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PROMPT = [{"role": "user", "content": "Hi 再见 🙂"}]
ASKED = "<|im_start|>user\nHi 再见 🙂<|im_end|>\n<|im_start|>assistant\n"


def said(content: str) -> list[dict[str, str]]:
    """An assistant's turn."""
    return [{"role": "assistant", "content": content}]


# Kind → a row, and what is shown of it: part, text, what is learned.
KINDS: dict[str, tuple[dict[str, Any], list[tuple[str, str, str]]]] = {
    "preference": (
        {"input": {"messages": PROMPT}, "preferred_output": said("Hello"), "non_preferred_output": said("No")},
        [
            ("chosen", ASKED + "Hello<|im_end|>\n", "Hello<|im_end|>"),
            ("rejected", ASKED + "No<|im_end|>\n", "No<|im_end|>"),
        ],
    ),
    "labels": (
        {"messages": [*PROMPT, *said("b"), *PROMPT, *said("c")], "label": True},
        [("conversation", f"{ASKED}b<|im_end|>\n{ASKED}c<|im_end|>\n", "c<|im_end|>")],
    ),
    "prompts": ({"messages": PROMPT}, [("prompt", ASKED, "")]),
    "text": ({"text": "Hi 再见 🙂"}, [("text", "Hi 再见 🙂<|im_end|>", "i 再见 🙂<|im_end|>")]),
}


@pytest.fixture
def preview(client: httpx.Client, upload: Upload) -> Preview:
    """Uploads rows and previews one of them."""

    def ask(rows: list[Any], kind: str = "auto", **body: Any) -> httpx.Response:
        made = upload(rows, kind=kind)
        assert made.status_code in (200, 201), made.text
        return client.post(f"/datasets/{made.json()['id']}/preview", json={"base_model": "demo-base"} | body)

    return ask


@pytest.fixture
def register(client: httpx.Client) -> Callable[[str, str], str]:
    """Registers the demo base under a chat template; its name."""

    def make(name: str, template: str) -> str:
        body = {"name": name, "source": str(DEMO_BASE), "chat_template": template}
        assert client.post("/models", json=body).status_code in (201, 409)
        return name

    return make


def learned(sequence: dict[str, Any]) -> str:
    """What is learned of a sequence."""
    return "".join(token for token, mask in zip(sequence["tokens"], sequence["loss_mask"], strict=True) if mask)


def test_a_conversation_is_shown_with_what_is_learned_of_it(preview: Preview) -> None:
    row = {"messages": [*PROMPT, {"role": "assistant", "content": "Yes."}]}
    body = preview([CHAT, row], row=1).json()
    [sequence] = body.pop("sequences")
    body.pop("dataset")
    assert body == {"object": "dataset.preview", "base_model": "demo-base", "row": 1, "max_length": 2048}
    assert (sequence["part"], sequence["cut_tokens"]) == ("conversation", 0)
    assert sequence["text"] == ASKED + "Yes.<|im_end|>\n" == "".join(sequence["tokens"])
    assert len(sequence["tokens"]) == len(sequence["token_ids"]) == len(sequence["loss_mask"])
    assert learned(sequence) == "Yes.<|im_end|>"


def test_a_row_is_shown_as_a_job_with_a_template_of_its_own_sees_it(preview: Preview) -> None:
    row = {"messages": [*PROMPT, *said("Yes.")]}
    [plain] = preview([row], chat_template="plain").json()["sequences"]
    assert plain["text"] == "User:\nHi 再见 🙂\n\nAssistant:\nYes.<|im_end|>\n\n"
    for arguments, shown in (
        ({}, "<think>\n\n</think>\n\nYes.<|im_end|>"),
        ({"enable_thinking": False}, "Yes.<|im_end|>"),
    ):
        [sequence] = preview([row], chat_template="qwen3", template_arguments=arguments).json()["sequences"]
        assert learned(sequence) == shown
    assert refusal(preview([row], chat_template="gemma"), 422, "invalid_value")["param"] == "chat_template"
    refused = refusal(preview([row], chat_template="{{ raise_exception('No.') }}"), 422, "template_refused")
    assert "demo-base" not in refused["message"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_shown(preview: Preview, kind: str) -> None:
    row, shown = KINDS[kind]
    others = [row | {"label": False}] if kind == "labels" else []  # both are needed
    sequences = preview([row, *others], kind=kind).json()["sequences"]
    assert [(each["part"], each["text"], learned(each)) for each in sequences] == shown


def test_a_long_row_is_cut_as_training_cuts_it(preview: Preview) -> None:
    whole = preview([CHAT]).json()["sequences"][0]
    [cut] = preview([CHAT], max_length=8).json()["sequences"]
    assert cut["token_ids"] == whole["token_ids"][:8]
    assert cut["text"] == "".join(whole["tokens"][:8])
    assert cut["cut_tokens"] == len(whole["token_ids"]) - 8 > 0


def test_tools_and_calls_are_shown(preview: Preview, register: Callable[[str, str], str]) -> None:
    template = CHATML.replace(
        "{{ m.content }}", "{{ m.content }}{{ tools | tojson }}{{ m.tool_calls | tojson if m.tool_calls }}"
    )
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
    turns = [{"role": "assistant", "tool_calls": [call]}, {"role": "tool", "content": "2", "tool_call_id": "c1"}]
    row = {
        "messages": [*PROMPT, *turns, {"role": "assistant", "content": "2"}],
        "tools": [{"type": "function", "function": {"name": "f"}}],
    }
    [sequence] = preview([row], base_model=register("with-tools", template)).json()["sequences"]
    tools = '[{"type": "function", "function": {"name": "f", "description": null, "parameters": null}}]'
    called = '[{"id": "c1", "function": {"arguments": {"x": 1}, "name": "f"}, "type": "function"}]'
    assert learned(sequence) == f"{tools}{called}<|im_end|>2{tools}<|im_end|>"


def test_a_row_that_the_template_refuses_is_told(preview: Preview, register: Callable[[str, str], str]) -> None:
    base = register("refuses", "{{ raise_exception('No, not this.') }}")
    error = refusal(preview([CHAT], base_model=base), 422, "template_refused")
    assert "row 0: No, not this." in error["message"]


@pytest.mark.parametrize(
    ("body", "status", "code", "param"),
    [
        ({"row": 1}, 404, "row_not_found", "row"),
        ({"row": -1}, 422, "invalid_value", "row"),
        ({"base_model": "nothing"}, 422, "model_not_found", "base_model"),
        ({"max_length": 10**6}, 422, "invalid_value", "max_length"),
        ({"line": 1}, 422, "unknown_field", "line"),
    ],
)
def test_what_is_not_there_is_named(preview: Preview, body: dict[str, Any], status: int, code: str, param: str) -> None:
    assert refusal(preview([CHAT], **body), status, code)["param"] == param


def test_no_such_dataset(client: httpx.Client) -> None:
    refusal(client.post("/datasets/ds_0/preview", json={"base_model": "demo-base"}), 404, "dataset_not_found")


def test_requests_share_two_processes(preview: Preview) -> None:
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda _: preview([CHAT]).status_code, range(6)))
    assert found == [200] * 6
    assert 1 <= len(renderers()) <= rendering.RENDERERS.places


def test_a_process_that_dies_of_a_request_is_replaced(preview: Preview, register: Callable[[str, str], str]) -> None:
    endless = register("endless", "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}")
    before = renderers()

    def kill_what_works() -> None:
        busy = eventually(lambda: [p for p in renderers() if p.cpu_percent(0.3) > 50 and p.cpu_times().user > 1], 60)
        for process in busy:
            os.kill(process.pid, signal.SIGKILL)

    killer = threading.Thread(target=kill_what_works)
    killer.start()
    answer = preview([CHAT], base_model=endless)
    killer.join()
    refusal(answer, 503, "renderer_unavailable")
    assert answer.headers["Retry-After"]
    assert preview([CHAT]).status_code == 200
    assert renderers() != before


def renderers() -> list[psutil.Process]:
    return helpers("worker.renderer")
