"""What the installed vLLM says of the parsers and limits that its command lines name. No engine is started."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from app.models.parsers import REASONING_PARSERS, TOOL_PARSERS, Parser, reasoning_parser, tool_parser
from app.settings import get_settings
from tests.conftest import DEMO_BASE, IN_CI
from tests.models.published import published
from worker.engine import vllm
from worker.engine.protocol import Launch

pytestmark = pytest.mark.skipif(
    not (IN_CI or vllm.is_installed(get_settings())), reason="vLLM is not installed in .venv-vllm"
)
PARSERS = {"tools": TOOL_PARSERS, "reasoning": REASONING_PARSERS}
TEMPLATES = ("qwen2_5", "qwen3", "qwen3_5_think", "llama3_1", "glm4moe", "gemma4_v5", "lfm2_2_5")
# In vLLM's environment: which parsers start with a tokenizer that has their tokens, what they read of an answer that the
# template writes, and whether the server's own arguments let it fetch anything.
ASKED = r"""
import json, os, re, sys
from transformers import AutoTokenizer
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.multimodal.media import MediaConnector
from vllm.parser.parser_manager import ParserManager
from vllm.utils.argparse_utils import FlexibleArgumentParser

asked = json.load(sys.stdin)
USER = [{"role": "user", "content": "How warm is it in Oslo?"}]
TOOLS = [{"type": "function", "function": {"name": "weather", "description": "Of a city.", "parameters": {
    "type": "object", "properties": {"city": {"type": "string", "description": "Where."}}, "required": ["city"]}}}]
CALL = {"id": "call12345", "type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}
END = re.compile("<[|]im_end[|]>|<[|]eot_id[|]>|<[|]user[|]>|<turn[|]>|<[|]tool_response>")

def parser_of(tools, reasoning, tokens, template=None):
    tokenizer = AutoTokenizer.from_pretrained(asked["model"])
    tokenizer.add_tokens(tokens)
    tokenizer.chat_template = template
    made = ParserManager.get_parser(tools, reasoning, bool(tools), tokenizer=tokenizer)
    return tokenizer, made

def read(case, message, tools):
    tokenizer, made = parser_of(case["tools"], case["reasoning"], case["tokens"], case["template"])
    prompt = tokenizer.apply_chat_template(USER, tools=tools, add_generation_prompt=True, tokenize=False)
    whole = tokenizer.apply_chat_template([*USER, message], tools=tools, tokenize=False)
    text = END.split(whole[len(os.path.commonprefix([prompt, whole])):])[0]
    request = ChatCompletionRequest(model="x", messages=USER, tools=tools)
    ids = tokenizer.encode(text, add_special_tokens=False)
    parser = made(tokenizer, request.tools)
    reasoning, content, calls = parser.parse(text, request, enable_auto_tools=bool(tools), model_output_token_ids=ids)
    return [(reasoning or "").strip(), (content or "").strip(), [[c.name, json.loads(c.arguments)] for c in calls or []]]

said = {"starts": {}, "read": {}}
for kind, name, tokens in asked["parsers"]:
    try:
        parser_of(*((name, None) if kind == "tools" else (None, name)), tokens)
        said["starts"][kind + " " + name] = "yes"
    except Exception as error:
        said["starts"][kind + " " + name] = repr(error)
for name, case in asked["templates"].items():
    thought = {"role": "assistant", "content": "4 degrees.", "reasoning_content": "It is winter.", "reasoning": "It is winter."}
    said["read"][name] = [
        read(case, thought if case["reasoning"] else {"role": "assistant", "content": "4 degrees."}, None),
        read(case, {"role": "assistant", "content": "", "tool_calls": [CALL]}, TOOLS),
    ]
arguments = make_arg_parser(FlexibleArgumentParser()).parse_args(asked["arguments"])
said["domains"] = arguments.allowed_media_domains
said["local"] = arguments.allowed_local_media_path
try:
    said["fetched"] = repr(MediaConnector(allowed_media_domains=arguments.allowed_media_domains).fetch_image("http://127.0.0.1:9/a.png"))
except Exception as error:
    said["fetched"] = str(error)
print("said:", json.dumps(said))
"""


def command(template: str) -> list[str]:
    """The command line of an engine for a model with this template, whose tokenizer has all tokens."""
    launch = Launch(
        "model_base", DEMO_BASE, 1, tool_parser=tool_parser(template), reasoning_parser=reasoning_parser(template)
    )
    return vllm.command(launch, get_settings())


@pytest.fixture(scope="module")
def said() -> Any:
    """What vLLM says, asked once."""
    templates: dict[str, Any] = {}
    for name in TEMPLATES:
        text = published(name)
        names = (tool_parser(text), reasoning_parser(text))
        tokens = {
            token for parser in (*TOOL_PARSERS, *REASONING_PARSERS) if parser.name in names for token in parser.tokens
        }
        templates[name] = {"template": text, "tools": names[0], "reasoning": names[1], "tokens": sorted(tokens)}
    asked = {
        "model": str(DEMO_BASE),
        "parsers": [(kind, parser.name, parser.tokens) for kind, parsers in PARSERS.items() for parser in parsers],
        "templates": templates,
        "arguments": command(published("qwen3"))[3:],
    }
    settings = get_settings()
    answer = subprocess.run(
        [str(settings.vllm_python), "-c", ASKED],
        input=json.dumps(asked), env=vllm.environment(settings), capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    lines = [line for line in answer.stdout.splitlines() if line.startswith("said: ")]
    assert lines, answer.stderr[-2000:]
    return json.loads(lines[0].removeprefix("said: "))


@pytest.mark.parametrize(
    ("kind", "parser"), [(kind, parser) for kind, parsers in PARSERS.items() for parser in parsers]
)
def test_vllm_has_each_parser_and_starts_with_it(said: Any, kind: str, parser: Parser) -> None:
    assert said["starts"][f"{kind} {parser.name}"] == "yes"


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_parsers_read_what_the_template_writes(said: Any, name: str) -> None:
    answer, call = said["read"][name]
    assert answer == ["It is winter." if reasoning_parser(published(name)) else "", "4 degrees.", []]
    assert call[1:] == ["", [["weather", {"city": "Oslo"}]]]


def test_command_lines_name_the_parsers_of_the_family() -> None:
    line = " ".join(command(published("qwen3")))
    assert "--enable-auto-tool-choice" in line
    assert "--tool-call-parser hermes --reasoning-parser qwen3" in line
    plain = " ".join(command((Path(DEMO_BASE) / "chat_template.jinja").read_text()))
    assert "parser" not in plain
    assert "tool-choice" not in plain


def test_the_engine_fetches_nothing_for_anyone(said: Any) -> None:
    assert said["domains"] == ["media.invalid"]
    assert said["local"] == ""
    assert "must be from one of the allowed domains" in said["fetched"]


def test_what_the_operator_adds_counts_among_the_features() -> None:
    settings = get_settings().model_copy(update={"vllm_args": "--enable-auto-tool-choice --tool-call-parser=pythonic"})
    launch = Launch("model_base", DEMO_BASE, 1, tool_parser="hermes")
    assert vllm.features(launch, settings) == {
        "engine": "vllm", "tools": "pythonic", "reasoning": None, "response_format": True,
    }  # fmt: skip
