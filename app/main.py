"""The HTTP service: settings, routers, error handlers, lifespan."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version

import anyio.to_thread
from fastapi import FastAPI

import app.chat.endpoints
import app.datasets.check_endpoints
import app.datasets.endpoints
import app.datasets.report_endpoints
import app.jobs.endpoints
import app.models.endpoints
import app.projects.endpoints
from app.chat.gateway import upstream_client
from app.kit import handlers
from app.kit.database import DEFAULT_PROJECT
from app.kit.errors import errors
from app.kit.guards import BodyLimit, LoopbackOnly, is_loopback
from app.models.service import register_demo_base
from app.settings import get_settings


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    await anyio.to_thread.run_sync(register_demo_base, DEFAULT_PROJECT)
    async with upstream_client() as client:
        app.state.upstream = client
        yield


def create_app() -> FastAPI:
    """The application. The database's schema must be current: `burnish up` migrates before it starts this."""
    service = FastAPI(
        title="Burnish",
        summary="A fine-tuning service that a team runs on its own machines",
        version=version("burnish"),
        lifespan=lifespan,
    )
    for routes in (
        app.datasets.endpoints,
        app.datasets.report_endpoints,
        app.datasets.check_endpoints,
        app.models.endpoints,
        app.jobs.endpoints,
        app.chat.endpoints,
        app.projects.endpoints,
    ):
        service.include_router(routes.router, responses=errors(401, 403))
    handlers.install(service)
    service.add_middleware(BodyLimit, unbounded=frozenset({("POST", "/datasets")}))
    if is_loopback(get_settings().host):
        service.add_middleware(LoopbackOnly)

    @service.get("/health", summary="Whether the API answers", tags=["service"])
    async def health() -> dict[str, str]:
        return {"status": "ok", "version": service.version}

    return service
