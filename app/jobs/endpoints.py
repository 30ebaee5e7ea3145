"""Routes of jobs."""

from __future__ import annotations

from typing import Annotated

import anyio.to_thread
from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

from app.jobs import logs, planning, service, streaming, verbs
from app.jobs.plan_schemas import PlanOut
from app.jobs.schemas import (
    CheckpointOut,
    EventOut,
    JobCreate,
    JobOut,
    LogOut,
    MetricOut,
    checkpoint_out,
    event_out,
    job_out,
    log_out,
)
from app.jobs.tables import Event, Job, Log, Status
from app.jobs.waiting import standing
from app.kit.errors import errors
from app.kit.helpers import run_apart
from app.kit.pagination import Page, Paging, page_of
from app.kit.paths import NameOrId
from app.kit.routing import NativeRoute
from app.kit.wire import Flag, WholeNumber
from app.projects.access import ToCreate, ToRead, ToWrite

router = APIRouter(prefix="/jobs", tags=["jobs"], route_class=NativeRoute)

StatusFilter = Annotated[Status | None, Query(description="Only jobs of this status.")]


def _out(*jobs: Job) -> list[JobOut]:
    where = standing(jobs)
    return [job_out(job, where.get(job.id)) for job in jobs]


def _id_of(project: str, name: str) -> str:
    """The id of the job that is called so now. What follows it goes on with the id: a job that fails loses its name."""
    return service.get(project, name).id


@router.post(
    "",
    status_code=202,
    summary="Start a job, or say what it would take",
    response_model=JobOut,
    responses={200: {"model": PlanOut, "description": "With dry_run."}, **errors(409, 422, 503)},
)
async def create_job(
    request: JobCreate,
    project: ToCreate,
    dry_run: Annotated[Flag, Query(description="Estimates memory, tokens, steps and time; starts nothing.")] = False,
) -> Response | JobOut:
    # Its rows are rendered, which may take seconds.
    return await run_apart(project, _create_job, project, request, dry_run)


def _create_job(project_id: str, request: JobCreate, dry_run: bool) -> Response | JobOut:
    if dry_run:
        return JSONResponse(planning.plan(project_id, request).model_dump(mode="json"))
    return _out(service.create(project_id, request))[0]


@router.get("", summary="List jobs", responses=errors(422))
def list_jobs(project: ToRead, page: Annotated[Paging, page_of("job")], status: StatusFilter = None) -> Page[JobOut]:
    jobs, more = service.list_jobs(project, page, status)
    return Page(data=_out(*jobs), has_more=more)


@router.get("/{id}", summary="Get a job by name or id", responses=errors(404, 409))
def get_job(id: NameOrId, project: ToRead) -> JobOut:
    return _out(service.get(project, id))[0]


@router.post("/{id}/cancel", summary="Cancel a job", responses=errors(404, 409))
def cancel_job(id: NameOrId, project: ToWrite) -> JobOut:
    return _out(verbs.cancel(project, id))[0]


@router.post("/{id}/pause", summary="Pause a job", responses=errors(404, 409))
def pause_job(id: NameOrId, project: ToWrite) -> JobOut:
    return _out(verbs.pause(project, id))[0]


@router.post("/{id}/resume", summary="Go on with a paused job", responses=errors(404, 409))
def resume_job(id: NameOrId, project: ToWrite) -> JobOut:
    return _out(verbs.resume(project, id))[0]


@router.post("/{id}/retry", summary="Try a failed job again", responses=errors(404, 409))
def retry_job(id: NameOrId, project: ToWrite) -> JobOut:
    return _out(verbs.retry(project, id))[0]


@router.delete("/{id}", status_code=204, summary="Delete a job that has ended", responses=errors(404, 409))
def delete_job(id: NameOrId, project: ToWrite) -> None:
    verbs.delete(project, id)


@router.get("/{id}/checkpoints", summary="What a run can go on from", responses=errors(404, 409))
def list_checkpoints(id: NameOrId, project: ToRead) -> Page[CheckpointOut]:
    found = service.list_checkpoints(project, id)
    return Page(data=[checkpoint_out(each, models) for each, models in found], has_more=False)


@router.get("/{id}/metrics", summary="What each optimiser step measured", responses=errors(404, 409, 422))
def list_metrics(
    id: NameOrId,
    project: ToRead,
    limit: Annotated[WholeNumber, Query(ge=1, le=10_000, description="How many at most.")] = 1000,
    after: Annotated[WholeNumber, Query(ge=0, le=2**31 - 1, description="A step: what follows it.")] = 0,
) -> Page[MetricOut]:
    rows, more = service.metrics(project, id, after, limit)
    return Page(data=[MetricOut(**row) for row in rows], has_more=more)


@router.get(
    "/{id}/events",
    summary="What happened to a job: a list, or a stream of server-sent events",
    response_model=Page[EventOut],
    responses={200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}, **errors(404, 409, 422)},
)
async def list_events(
    id: NameOrId,
    project: ToRead,
    request: Request,
    limit: Annotated[WholeNumber, Query(ge=1, le=1000, description="How many at most.")] = 100,
    after: Annotated[WholeNumber, Query(ge=0, le=2**31 - 1, description="An event's number: what follows it.")] = 0,
    last_event_id: Annotated[WholeNumber | None, Header(ge=0, le=2**31 - 1, description="Resumes a stream.")] = None,
) -> Response | Page[EventOut]:
    start = after if last_event_id is None else last_event_id
    id = await anyio.to_thread.run_sync(_id_of, project, id)
    found, more, ended = await anyio.to_thread.run_sync(service.events, project, id, start, limit)
    if "text/event-stream" not in request.headers.get("accept", ""):
        return Page(data=[event_out(event) for event in found], has_more=more)

    def read(number: int) -> streaming.Batch[Event]:
        return service.events(project, id, number, 1000)

    rows = streaming.followed(Event, id, read, (found, more, ended), start, lambda _: True)
    return streaming.server_sent(rows, lambda event: event.type, event_out)


@router.get(
    "/{id}/logs",
    summary="What a job's trainers wrote: a list, a stream of server-sent events, or plain text",
    response_model=Page[LogOut],
    responses={
        200: {"content": {kind: {"schema": {"type": "string"}} for kind in ("text/event-stream", "text/plain")}},
        **errors(404, 409, 422),
    },
)
async def list_logs(
    id: NameOrId,
    project: ToRead,
    request: Request,
    limit: Annotated[WholeNumber, Query(ge=1, le=100, description="How many at most.")] = 20,
    after: Annotated[WholeNumber, Query(ge=0, le=2**31 - 1, description="A piece's number: what follows it.")] = 0,
    attempt: Annotated[WholeNumber | None, Query(ge=1, le=2**31 - 1, description="Only of this attempt.")] = None,
    last_event_id: Annotated[WholeNumber | None, Header(ge=0, le=2**31 - 1, description="Resumes a stream.")] = None,
) -> Response | Page[LogOut]:
    start = after if last_event_id is None else last_event_id
    id = await anyio.to_thread.run_sync(_id_of, project, id)

    def read(number: int, limit: int = 20) -> streaming.Batch[Log]:
        return logs.read(project, id, number, limit, attempt)

    first = await anyio.to_thread.run_sync(read, start, limit)
    wanted = request.headers.get("accept", "")
    if "text/event-stream" in wanted:
        rows = streaming.followed(Log, id, read, first, start, lambda row: attempt in (None, row.attempt))
        return streaming.server_sent(rows, lambda _: "log", log_out)
    if "text/plain" in wanted:
        whole = streaming.stored(read, first)
        return StreamingResponse((row.text async for row in whole), media_type="text/plain")
    return Page(data=[log_out(each) for each in first[0]], has_more=first[1])
