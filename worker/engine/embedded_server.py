"""The embedded engine's HTTP server: as much of vLLM's surface as the service uses, on one `EmbeddedModel`."""

from __future__ import annotations

import argparse
import asyncio
import json
import threading
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import PlainTextResponse, Response, StreamingResponse

from worker.engine import embedded_wire as wire
from worker.engine.embedded_model import EmbeddedModel, Sampling
from worker.engine.embedded_wire import Refused, Shape
from worker.trainer.data.render import ChatTemplateError

Result = TypeVar("Result")
HANG_UP_SECONDS = 0.2


@dataclass
class Answer:
    """An answer while it is made."""

    text: str = ""
    tokens: list[int] = field(default_factory=list)
    finish: str = "length"


def create_app(model: EmbeddedModel, served: str) -> FastAPI:
    """The server of `model` under the name `served`."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    # The one thread that touches the model: generations, scores and loads take turns on it.
    turn = ThreadPoolExecutor(max_workers=1, thread_name_prefix="model")

    async def in_turn(work: Callable[..., Result], *arguments: Any) -> Result:
        return await asyncio.get_running_loop().run_in_executor(turn, work, *arguments)

    def adapter_of(name: Any) -> str | None:
        if name == served or name in model.adapters:
            return None if name == served else str(name)
        raise Refused(f"The model `{name}` does not exist.", "model", "model_not_found", 404)

    app.add_exception_handler(Refused, lambda _, error: error.response())

    @app.get("/health")
    async def health() -> Response:
        return Response(status_code=200)

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        names = [served, *sorted(model.adapters)]
        data = [{"id": name, "object": "model", "created": 0, "owned_by": "burnish"} for name in names]
        return {"object": "list", "data": data}

    @app.post("/v1/load_lora_adapter")
    async def load(request: Request) -> Response:
        body = await _body(request)
        name, path = str(body.get("lora_name")), Path(str(body.get("lora_path")))
        if name in model.adapters:
            raise Refused(f"The lora adapter '{name}' has already been loaded.", "lora_name")
        try:
            await in_turn(model.load_adapter, name, path)
        except Exception as error:
            raise Refused(f"{type(error).__name__}: {error}", "lora_path") from error
        return PlainTextResponse(f"Success: LoRA adapter '{name}' added successfully.")

    @app.post("/v1/unload_lora_adapter")
    async def unload(request: Request) -> Response:
        name = str((await _body(request)).get("lora_name"))
        if name not in model.adapters:
            raise Refused(f"The lora adapter '{name}' cannot be found.", "lora_name", status=404)
        await in_turn(model.unload_adapter, name)
        return PlainTextResponse(f"Success: LoRA adapter '{name}' removed successfully.")

    @app.post("/v1/completions")
    async def completions(request: Request) -> Any:
        body = await _body(request)
        scores = body.get("prompt_logprobs") == 0 and isinstance(body.get("prompt"), list)
        if scores:
            del body["prompt_logprobs"]
        body = wire.check_completion(body)
        adapter, prompt = adapter_of(body.get("model")), body["prompt"]
        ids = model.encode(prompt) if isinstance(prompt, str) else prompt
        if not ids or not all(0 <= each < model.vocabulary for each in ids):
            raise Refused(f"The prompt must be tokens from 0 to {model.vocabulary - 1}, one at least.", "prompt")
        room = _check_length(model, ids, "prompt")
        if not scores:
            return await answered(wire.COMPLETION, request, body, adapter, ids, min(body.get("max_tokens", 16), room))
        values = await in_turn(model.log_probabilities, adapter, ids)
        return wire.scored(_new_id(wire.COMPLETION), str(body["model"]), ids, values)

    @app.post("/v1/score")
    async def score(request: Request) -> dict[str, Any]:
        body = await _body(request)
        if not model.scores:
            raise Refused("This model writes answers; only a reward model scores them.", "model")
        texts, arguments = list(body.get("token_ids", [])), body.get("chat_template_kwargs")
        for number, messages in enumerate(body.get("conversations", [])):
            try:
                texts.append(model.render_answered(messages, arguments))
            except ChatTemplateError as error:
                raise Refused(f"The chat template refuses conversation {number}: {error}", "conversations") from error
        for ids in texts:
            _check_length(model, ids, "conversations")
        data = [
            {"object": "score", "index": i, "score": await in_turn(model.score, ids)} for i, ids in enumerate(texts)
        ]
        tokens = wire.count(sum(map(len, texts)), 0)
        return {"object": "list", "model": str(body.get("model")), "data": data, "usage": tokens}

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Any:
        body = wire.check_chat(await _body(request))
        adapter = adapter_of(body.get("model"))
        try:
            ids = model.render(body["messages"], body["chat_template_kwargs"], body.get("chat_template"))
        except ChatTemplateError as error:
            raise Refused(f"The chat template refuses these messages: {error}", "messages", "invalid_value") from error
        room = _check_length(model, ids, "messages")
        limit = min(body.get("max_completion_tokens", body.get("max_tokens", room)), room)
        return await answered(wire.CHAT, request, body, adapter, ids, limit)

    async def answered(
        shape: Shape, request: Request, body: dict[str, Any], adapter: str | None, ids: list[int], limit: int
    ) -> Any:
        """The answer that follows these tokens, at most `limit` of them, in one piece or as events."""
        name, ends = str(body["model"]), model.end_ids | set(body["stop_token_ids"])
        sampling = Sampling(limit, body.get("temperature"), body.get("top_p"), body.get("seed"), ends)
        answer = Answer()
        pieces = _pieces(model, turn, request, adapter, ids, sampling, body["stop"], answer)
        if body.get("stream"):
            options = body.get("stream_options", {})
            return StreamingResponse(
                _events(shape, pieces, answer, name, len(ids), options),
                media_type="text/event-stream",
            )
        async for _ in pieces:
            pass
        usage = wire.count(len(ids), len(answer.tokens))
        return wire.completion(shape, _new_id(shape), name, answer.text, answer.finish, usage)

    return app


async def _pieces(
    model: EmbeddedModel,
    turn: ThreadPoolExecutor,
    request: Request,
    adapter: str | None,
    ids: list[int],
    sampling: Sampling,
    stops: list[str],
    answer: Answer,
) -> AsyncGenerator[str]:
    """Generate into `answer`, yielding its text as it grows. Ends, and ends the generation, when the client hangs up."""
    loop, cancelled = asyncio.get_running_loop(), threading.Event()
    tokens: asyncio.Queue[int | None] = asyncio.Queue()

    def put(token: int | None) -> None:
        loop.call_soon_threadsafe(tokens.put_nowait, token)

    work = loop.run_in_executor(turn, model.generate, adapter, ids, sampling, put, cancelled)
    work.add_done_callback(lambda _: tokens.put_nowait(None))
    held_back = max((len(stop) - 1 for stop in stops), default=0)  # what may turn out to begin a stop string
    try:
        while True:
            try:
                token = await asyncio.wait_for(tokens.get(), HANG_UP_SECONDS)
            except TimeoutError:
                token = -1
            if await request.is_disconnected():
                return
            if token is None:
                break
            if token < 0:
                continue
            answer.tokens.append(token)
            if token in sampling.stop_ids:
                answer.finish = "stop"
                continue
            text = model.tokenizer.decode(answer.tokens, skip_special_tokens=True)
            ends = [found for stop in stops if (found := text.find(stop)) >= 0]
            if ends:
                answer.finish, text = "stop", text[: min(ends)]
            # A character that is not complete yet decodes to the replacement character.
            sure = len(text) if ends else len(text.rstrip("\ufffd")) - held_back
            if sure > len(answer.text):
                piece, answer.text = text[len(answer.text) : sure], text[:sure]
                yield piece
            if ends:
                return
        await work  # raises what the generation raised
        text = model.tokenizer.decode(answer.tokens, skip_special_tokens=True)
        if len(text) > len(answer.text):
            piece, answer.text = text[len(answer.text) :], text
            yield piece
    finally:
        cancelled.set()


async def _events(
    shape: Shape, pieces: AsyncGenerator[str], answer: Answer, name: str, prompt: int, options: dict[str, Any]
) -> AsyncIterator[str]:
    """The server-sent events of a streamed answer; `options` are the request's `stream_options`."""
    id = _new_id(shape)

    def event(part: dict[str, Any], finish: str | None = None) -> str:
        used = {"usage": wire.count(prompt, len(answer.tokens))} if options.get("continuous_usage_stats") else {}
        return _event(wire.chunk(shape, id, name, part, finish) | used)

    if shape.opening:
        yield event(shape.opening)
    async with aclosing(pieces):
        async for piece in pieces:
            yield event(shape.piece(piece))
    yield event(shape.ending, answer.finish)
    if options.get("include_usage"):
        total = wire.count(prompt, len(answer.tokens))
        yield _event(wire.chunk(shape, id, name, {}) | {"choices": [], "usage": total})
    yield "data: [DONE]\n\n"


def _event(data: dict[str, Any]) -> str:
    return f"data: {json.dumps(data, ensure_ascii=False)}\n\n"


def _new_id(shape: Shape) -> str:
    return f"{shape.prefix}-{uuid.uuid4().hex}"


async def _body(request: Request) -> dict[str, Any]:
    try:
        body = await request.json()
    except ValueError as error:
        raise Refused(f"The body is not JSON: {error}") from error
    if not isinstance(body, dict):
        raise Refused("The body must be a JSON object.")
    return body


def _check_length(model: EmbeddedModel, ids: list[int], param: str) -> int:
    """How many tokens may follow the prompt. Raises `Refused` when none may."""
    room = model.max_length - len(ids)
    if room < 1:
        message = f"The prompt has {len(ids)} tokens, and the context is {model.max_length} tokens long."
        raise Refused(message, param, "context_length_exceeded")
    return room


def main() -> None:
    """Load the model and serve until SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--served-model-name", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--max-model-len", type=int, required=True)
    parser.add_argument("--chat-template", type=Path)
    parser.add_argument("--trust-remote-code", action="store_true")
    arguments = parser.parse_args()
    template = arguments.chat_template.read_text() if arguments.chat_template else None
    model = EmbeddedModel(arguments.model, template, arguments.max_model_len, arguments.trust_remote_code)
    app = create_app(model, arguments.served_model_name)
    uvicorn.run(app, host="127.0.0.1", port=arguments.port, access_log=False, timeout_graceful_shutdown=2)


if __name__ == "__main__":
    main()
