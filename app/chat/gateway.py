"""From a request for a model to the engine that answers it: find, wait, forward, hang up."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Coroutine
from dataclasses import dataclass
from typing import Any, Literal

import anyio
import httpx
import orjson
from fastapi import Request, Response
from fastapi.responses import StreamingResponse

from app.chat.cache_salt import cache_salt
from app.chat.capabilities import reasoning_arguments, require_supported
from app.chat.engine_errors import from_engine, from_event, shown_names
from app.chat.media import refuse_urls
from app.chat.metering import Meter
from app.chat.threads import in_thread
from app.chat.waiting import Engines, no_engine
from app.kit import tracing
from app.kit.database import reading
from app.kit.errors import BadRequest, InvalidValue, ServiceError, Unavailable
from app.models.chat_templates import RESERVED
from app.models.service import find, not_found
from app.models.tables import Model
from app.projects import limits
from app.projects.acting import actor
from app.settings import get_settings


class HungUp(ServiceError):
    """Nobody is there to read this; the status is the one that proxies log for it."""

    status, code = 499, "client_closed_request"


@dataclass(frozen=True)
class UpstreamRequest:
    """A request that any engine of the model can be sent."""

    client: httpx.AsyncClient
    path: str
    content: bytes

    async def send(self, url: str) -> httpx.Response:
        with tracing.calling(f"POST {self.path}") as carried:
            headers = {"Content-Type": "application/json"} | carried
            request = self.client.build_request("POST", url + self.path, content=self.content, headers=headers)
            return await self.client.send(request, stream=True)


def upstream_client() -> httpx.AsyncClient:
    """The client for engines: no limit on how long an answer takes, a short one on connecting, no proxy in between."""
    return httpx.AsyncClient(
        timeout=httpx.Timeout(None, connect=5.0),
        # Shorter than an engine keeps an idle connection: one that it is just closing must not be used.
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=100, keepalive_expiry=2.0),
        trust_env=False,
    )


async def forward(
    request: Request, project_id: str, path: Literal["/v1/chat/completions", "/v1/completions"]
) -> Response:
    """Passes an OpenAI request on to the engine of its `model`, and the engine's answer back.

    Raises `NotFound` for an unknown model and `Unavailable` where no engine answers in time. When the client hangs up the
    connection to the engine is closed, which ends the generation.
    """
    chats = path == "/v1/chat/completions"
    body = await _read_object(request)
    name = body.get("model")
    if not isinstance(name, str) or not name:
        raise InvalidValue("The field 'model' must name a model.", param="model", hint="GET /v1/models lists them.")
    model = await in_thread(_servable, project_id, name, chats)
    if model.kind == "reward":
        raise InvalidValue(
            f"'{name}' is a reward model: it scores answers and writes none.",
            param="model",
            hint=f"Send conversations to POST /models/{name}/score.",
        )
    # A fine-tune ends its turns as its chat template does, which the base model's own configuration may not know.
    ends = [] if body.get("ignore_eos") else model.facts.get("stop_token_ids", [])
    fields = {"stop_token_ids": ends} | body | {"model": model.id}
    require_supported(model, body, None)
    fields["cache_salt"] = cache_salt(project_id, body.get("cache_salt"))
    if chats:
        refuse_urls(body.get("messages"))
        fields |= _templated(model, body)
    wanted = body.get("stream_options") or {}
    if body.get("stream") and isinstance(wanted, dict):  # if not, the engine refuses it
        # Tokens are counted also where the client hangs up, so the engine says with every piece how many there are.
        fields["stream_options"] = wanted | {"include_usage": True, "continuous_usage_stats": True}
    return await _answer(request, model, path, fields, wanted, shown_names(model, name))


async def score(request: Request, project_id: str, name: str, conversations: list[Any]) -> Response:
    """Has a reward model score conversations. Raises as `forward` does."""
    model = await in_thread(_servable, project_id, name, True)
    if model.kind != "reward":
        raise InvalidValue(
            f"'{name}' is no reward model: it writes answers and scores none.",
            param="name",
            hint="Train one with stage 'rm'.",
        )
    fields = {"model": model.id, "conversations": conversations} | _templated(model, {})
    return await _answer(request, model, "/v1/score", fields, {}, shown_names(model, name))


def _templated(model: Model, body: dict[str, Any]) -> dict[str, Any]:
    """What tells the engine how to render the conversation: an adapter's own template, where its base's is another, and the
    model's template arguments, over which those of the request go. Raises `InvalidValue`."""
    if body.get("chat_template") is not None:
        raise InvalidValue(
            "A request is rendered by the chat template that its model was trained with, and brings none.",
            param="chat_template",
            hint="Register the model, or train a job, with that chat_template.",
        )
    asked = body.get("chat_template_kwargs") or {}
    if not isinstance(asked, dict) or (taken := sorted(RESERVED & asked.keys())):
        what = (
            f"'{taken[0]}' is set by what renders the template" if isinstance(asked, dict) else "an object is expected"
        )
        raise InvalidValue(
            f"The field 'chat_template_kwargs' has a wrong value: {what}.",
            param="chat_template_kwargs",
            hint='{"enable_thinking": false}, for instance, where the template reads it.',
        )
    arguments = model.template_arguments | asked
    arguments |= reasoning_arguments(model, body, arguments)
    found: dict[str, Any] = {"chat_template_kwargs": arguments} if arguments else {}
    # An engine holds its weights' template; it takes another one with each request for an adapter.
    if model.kind == "adapter" and model.base_model and model.base_model.chat_template != model.chat_template:
        found["chat_template"] = model.chat_template
    return found


async def _answer(
    request: Request, model: Model, path: str, fields: dict[str, Any], wanted: dict[str, Any], names: dict[str, str]
) -> Response:
    """The answer of the model's engine, counted; `wanted` are the client's `stream_options`, and `names` stand in place of
    the engine's. Raises what `from_engine` makes of an engine's error."""
    meter = Meter(actor(), model.name)
    left = await in_thread(limits.spend, "tokens", meter.caller.rates, 0)
    request.state.headers |= limits.headers("tokens", left)
    limits.require("tokens", left, 1)
    upstream = UpstreamRequest(request.app.state.upstream, path, orjson.dumps(fields))
    engines: Engines = request.app.state.engines
    async with engines.in_use(model):
        answer = await _unless_hung_up(request, _ask(engines, upstream, model, fields))
    if answer.is_closed:
        whole = _read(answer.content)
        if whole is None or answer.is_error:
            raise from_engine(answer.status_code, whole, names)
        meter.read(whole)
        await meter.write()
        return Response(orjson.dumps(_renamed(whole, names)), answer.status_code, media_type="application/json")
    lines = _renamed_lines(engines, answer, model, meter, wanted, names)
    return StreamingResponse(lines, answer.status_code, media_type="text/event-stream")


async def _ask(engines: Engines, upstream: UpstreamRequest, model: Model, fields: dict[str, Any]) -> httpx.Response:
    """The engine's answer: complete and closed, or open where it is a stream of events. `fields` are what it is asked."""
    deadline = time.monotonic() + get_settings().engine_wait_seconds
    place = await engines.place(model, deadline)
    while True:
        require_supported(model, fields, place.features)
        try:
            answer = await upstream.send(str(place.url))
        except httpx.TransportError as error:  # it died before it answered: the controller brings it back
            if time.monotonic() > deadline:
                raise no_engine(model, str(error)) from error
            place = await engines.place(model, deadline, again=True)
            continue
        if "text/event-stream" in answer.headers.get("content-type", ""):
            return answer
        try:
            await answer.aread()
        except httpx.TransportError as error:
            raise no_engine(model, "it stopped in the middle of its answer") from error
        finally:
            await answer.aclose()
        return answer


async def _read_object(request: Request) -> dict[str, Any]:
    try:
        body = orjson.loads(await request.body())
    except orjson.JSONDecodeError as error:
        raise BadRequest(f"The body is not JSON: {error}.", hint="Send one JSON object.") from error
    if not isinstance(body, dict):
        raise BadRequest("The body is JSON, but not an object.", hint="Send one JSON object.")
    return body


def _servable(project_id: str, name: str, renders: bool) -> Model:
    with reading() as session:
        model = find(session, project_id, name)
    if model is None:
        raise not_found(name, "model")
    if model.status not in ("ready", "deploying"):
        raise Unavailable(
            f"The model '{name}' is {model.status}.",
            param="model",
            code="model_not_ready",
            hint=f"GET /models/{name} says how far it is.",
        )
    if model.facts.get("architecture_only"):
        raise InvalidValue(
            f"The model '{name}' is an architecture without weights.",
            param="model",
            hint="Train one on it with stage 'pt' and hyperparameters.initial_weights 'random'.",
        )
    if renders and model.chat_template is None:
        raise InvalidValue(
            f"The model '{name}' has no chat template.",
            param="model",
            hint="Ask it with POST /v1/completions, or register it again with a 'chat_template'.",
        )
    return model


async def _unless_hung_up(request: Request, work: Coroutine[Any, Any, httpx.Response]) -> httpx.Response:
    """The result of `work`, which is cancelled when the client hangs up first."""

    async def hung_up() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    working, watching = asyncio.ensure_future(work), asyncio.ensure_future(hung_up())
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise HungUp("The client hung up.")
    finally:
        working.cancel()
        watching.cancel()


def _read(payload: bytes) -> dict[str, Any] | None:
    try:
        answer = orjson.loads(payload)
    except orjson.JSONDecodeError:
        return None
    return answer if isinstance(answer, dict) else None


def _renamed(answer: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    """The engine knows models by id; the answer tells the name that was asked for."""
    return answer | {"model": names[answer["model"]]} if answer.get("model") in names else answer


async def _renamed_lines(
    engines: Engines,
    answer: httpx.Response,
    model: Model,
    meter: Meter,
    wanted: dict[str, Any],
    names: dict[str, str],
) -> AsyncIterator[bytes]:
    """The answer's events, with the usage that the client wanted (its `stream_options`) and no more."""
    try:
        async with engines.in_use(model):
            # Lines end with \n alone: text may hold other characters that Python and httpx take for line ends.
            rest = b""
            async for part in answer.aiter_bytes():
                *lines, rest = (rest + part).split(b"\n")
                for line in lines:
                    if not line.startswith(b"data:"):
                        continue
                    event = _read(line.removeprefix(b"data:"))
                    if event is None:
                        yield line.rstrip(b"\r") + b"\n\n"
                        continue
                    if "error" in event:
                        yield _event(from_event(event, names))
                        continue
                    meter.read(event)
                    if shown := _as_wanted(event, wanted):
                        yield _event(_renamed(shown, names))
    except httpx.TransportError:  # the engine died; the status is sent, so an event has to say so
        yield _event(no_engine(model, "it stopped in the middle of its answer").body())
    finally:
        with anyio.CancelScope(shield=True):
            await answer.aclose()
            await meter.write()


def _event(body: dict[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(body) + b"\n\n"


def _as_wanted(event: dict[str, Any], wanted: dict[str, Any]) -> dict[str, Any] | None:
    """The event as the engine would have sent it to the client, or None where it would not have."""
    if event.get("choices") == [] and "usage" in event:
        return event if wanted.get("include_usage") else None
    if wanted.get("continuous_usage_stats"):
        return event
    return {name: value for name, value in event.items() if name != "usage"}
