"""Whether jobs are being claimed: checks, each with a sentence about what is wrong."""

from __future__ import annotations

from collections.abc import Callable

from sqlalchemy.orm import Session

from app.jobs.waiting import stuck
from app.kit.database import reading
from app.kit.errors import Unavailable
from app.workers.service import alive


def _training(session: Session) -> str | None:
    workers = alive(session, "training")
    if any(worker.status == "ready" for worker in workers):
        return None
    told = "; ".join(f"{worker.name} is {worker.status}: {worker.reason or 'it ends'}" for worker in workers)
    return told or "no training worker was heard of lately; start one with `burnish worker`"


def _housekeeping(session: Session) -> str | None:
    if alive(session, "housekeeping"):
        return None
    return "no round was run lately; `burnish beat` and `burnish worker --queue housekeeping` do them"


CHECKS: tuple[Callable[[Session], str | None], ...] = (_training, _housekeeping, stuck)


def require_ready() -> None:
    """Raises `Unavailable` with all that keeps jobs from being claimed."""
    with reading() as session:
        wrong = [found for look in CHECKS if (found := look(session))]
    if wrong:
        raise Unavailable(
            f"Jobs are not being claimed: {'. '.join(wrong)}.", code="not_ready", hint="See GET /workers."
        )
