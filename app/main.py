"""The HTTP service: settings, routers, error handlers, lifespan."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version

import anyio.to_thread
from fastapi import FastAPI, Request, Response
from fastapi.responses import RedirectResponse
from fastapi_offline import FastAPIOffline

import app.chat.endpoints
import app.chat.scoring
import app.datasets.check_endpoints
import app.datasets.endpoints
import app.datasets.report_endpoints
import app.jobs.endpoints
import app.models.endpoints
import app.models.grant_endpoints
import app.monitoring.endpoints
import app.projects.audit_endpoints
import app.projects.endpoints
import app.readiness.endpoints
import app.secrets.endpoints
import app.usage.endpoints
import app.webhooks.endpoints
import app.workers.endpoints
from app.chat.gateway import upstream_client
from app.chat.waiting import Engines
from app.kit import handlers, tracing
from app.kit.database import DEFAULT_PROJECT
from app.kit.errors import errors
from app.kit.guards import AnswerHeaders, BodyLimit, HeadAsGet, LoopbackOnly, is_loopback
from app.kit.routing import NativeRoute
from app.models.service import register_demo_base
from app.monitoring.recording import Recorded
from app.projects.idempotency import Replayed, answer_again
from app.settings import get_settings

# What machines ask every few seconds.
UNTRACED = frozenset({"/health", "/ready", "/metrics"})


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    await anyio.to_thread.run_sync(register_demo_base, DEFAULT_PROJECT)
    async with upstream_client() as client:
        app.state.upstream, app.state.engines = client, Engines()
        yield
    await anyio.to_thread.run_sync(tracing.flush)


def create_app() -> FastAPI:
    """The application. The database's schema must be current: `burnish up` migrates before it starts this."""
    # Its pages load nothing from elsewhere: the service's machine may have no way out.
    service = FastAPIOffline(
        redoc_url=None,
        swagger_ui_parameters={"validatorUrl": None},  # a badge that another host draws
        generate_unique_id_function=lambda route: route.name,
        title="Burnish",
        summary="A fine-tuning service that a team runs on its own machines",
        version=version("burnish"),
        lifespan=lifespan,
        # A span for each request, where `tracing.configure` has set up a provider.
        telemetry={
            "metrics": False,
            "logs": False,
            "operation_spans": False,
            "auto_configure": False,
            "exclude": lambda scope: scope["path"] in UNTRACED,
        },
    )
    for routes in (
        app.datasets.endpoints,
        app.datasets.report_endpoints,
        app.datasets.check_endpoints,
        app.models.endpoints,
        app.models.grant_endpoints,
        app.jobs.endpoints,
        app.chat.endpoints,
        app.chat.scoring,
        app.projects.endpoints,
        app.projects.audit_endpoints,
        app.secrets.endpoints,
        app.usage.endpoints,
        app.workers.endpoints,
        app.readiness.endpoints,
        app.webhooks.endpoints,
        app.monitoring.endpoints,
    ):
        service.include_router(routes.router, responses=errors(400, 401, 403, 413, 415, 422, 429))
    handlers.install(service)
    service.router.route_class = NativeRoute
    service.add_exception_handler(Replayed, answer_again)
    service.add_middleware(AnswerHeaders)
    service.add_middleware(HeadAsGet)
    service.add_middleware(BodyLimit, unbounded=frozenset({("POST", "/datasets")}))
    if is_loopback(get_settings().host):
        service.add_middleware(LoopbackOnly, public_url=get_settings().public_url)

    @service.get("/health", summary="Whether the API answers", tags=["service"])
    async def health() -> dict[str, str]:
        return {"status": "ok", "version": service.version}

    @service.get("/", summary="Where to go from here", tags=["service"], response_model=dict[str, str])
    async def root(request: Request) -> Response | dict[str, str]:
        # Relative, so that they hold behind a proxy that adds a prefix.
        if "text/html" in request.headers.get("accept", ""):
            return RedirectResponse("docs")
        links = {name: name for name in ("docs", "openapi.json", "health", "ready")}
        return {"object": "service", "version": service.version, **links}

    # Outside of Starlette's own outermost middleware, which answers with 500 where nothing else did.
    service.middleware_stack = Recorded(service.build_middleware_stack())
    return service
