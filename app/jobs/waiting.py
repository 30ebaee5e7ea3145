"""Where queued jobs stand, and what they wait for."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta

from sqlalchemy import Select, func, select
from sqlalchemy.orm import Session

from app.jobs.attempts import LINE, claimable
from app.jobs.room import Room, is_enough, rooms
from app.jobs.schemas import QueueOut
from app.jobs.tables import Job
from app.kit.database import database_now, reading
from app.kit.leases import in_state
from app.workers.service import alive
from app.workers.tables import Worker

# A job that a worker has room for is claimed within seconds; after this long something is wrong.
STUCK_AFTER = timedelta(minutes=1)


def standing(jobs: Iterable[Job]) -> dict[str, QueueOut]:
    """Where each of these that is queued stands, by its id. Asks nothing where none is."""
    queued = [job for job in jobs if job.status == "queued"]
    if not queued:
        return {}
    with reading() as session:
        return places(session, queued)


def places(session: Session, queued: list[Job]) -> dict[str, QueueOut]:
    """The same in a transaction of the caller's, for jobs that are all queued."""
    ids = [job.id for job in queued]
    in_line = select(Job.id, func.row_number().over(order_by=(*LINE, Job.id)).label("place"))
    line = in_line.where(in_state(Job, "queued")).subquery()
    position = dict(session.execute(select(line.c.id, line.c.place).where(line.c.id.in_(ids))).all())
    may_run = set(session.scalars(select(Job.id).where(claimable(session), Job.id.in_(ids))))
    workers = alive(session, "training")
    fit = [worker for worker in workers if worker.status == "ready"]
    places_for = [(worker, set(session.scalars(_of(ids, _whole(worker))))) for worker in fit]

    def waits_for(job: Job) -> str:
        if not workers:
            return "a worker: none was heard of lately"
        if not fit:
            return f"a worker that is fit: {workers[0].name} is {workers[0].status}: {workers[0].reason or 'it ends'}"
        able = [worker for worker, could_run in places_for if job.id in could_run]
        if not able:
            return f"a worker with {_asked(job)}; none that was heard of lately has that"
        if job.id not in may_run:
            return "another job of the project to end: it runs as many as its limit allows"
        slots, taken = sum(worker.slots for worker in able), sum(len(worker.doing) for worker in able)
        if taken < slots and position.get(job.id) == 1:
            return "a worker to take it, or to have enough free"
        return f"a free slot: {taken} of {slots} are taken"

    return {job.id: QueueOut(position=position.get(job.id, 1), waiting_for=waits_for(job)) for job in queued}


def stuck(session: Session) -> str | None:
    """A sentence about a job that has waited for long while a worker had room for it; None where there is none."""
    may_run = claimable(session)
    for worker in alive(session, "training"):
        if worker.status != "ready" or len(worker.doing) >= worker.slots:
            continue
        whole, free = rooms(worker.gpus, worker.memory_gb, worker.doing)
        first = session.scalars(select(Job).where(may_run, is_enough(whole)).order_by(*LINE, Job.id).limit(1)).first()
        if first is None or session.scalar(_of([first.id], free)) is None:
            continue
        since = first.queued_at or first.created_at
        if database_now(session) - since > STUCK_AFTER:
            return f"{first.id} has waited since {since:%Y-%m-%d %H:%M:%S}, and {worker.name} has room for it"
    return None


def _whole(worker: Worker) -> Room:
    return rooms(worker.gpus, worker.memory_gb, worker.doing)[0]


def _of(ids: list[str], room: Room) -> Select[str]:
    return select(Job.id).where(Job.id.in_(ids), is_enough(room))


def _asked(job: Job) -> str:
    """What a job asks of a worker, in words."""
    memory = f"{job.memory_gb:g} GiB" if job.memory_gb else ""
    if job.gpus:
        return f"{job.gpus} GPU{'s' if job.gpus > 1 else ''}{f' of {memory}' if memory else ''}"
    return f"{memory} of memory" if memory else "room for it"
