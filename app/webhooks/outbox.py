"""The outbox: an event is put into it by the transaction that it tells of, so one is there exactly when the other is."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import Any

import orjson
from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from app.kit.database import after_commit, database_now, utc_now, writing
from app.kit.ids import new_id
from app.kit.queue import wake
from app.webhooks.tables import Delivery, Webhook

KEPT = timedelta(days=30)


def announce(session: Session, project_id: str, type: str, data: Callable[[], dict[str, Any]]) -> None:
    """Puts an event of this type into the outbox, for each of the project's webhooks that wants it.

    `data` says what it is about; it is asked only where there is such a webhook.
    """
    query = select(Webhook).where(Webhook.project_id == project_id, Webhook.enabled).order_by(Webhook.id)
    # Held, so that one that is deleted at this moment does not undo what the event tells of.
    found = session.scalars(query.with_for_update(read=True, key_share=True, of=Webhook))
    wanting = [webhook for webhook in found if webhook.events is None or type in webhook.events]
    if wanting:
        put(session, wanting, type, data())


def put(session: Session, webhooks: list[Webhook], type: str, data: dict[str, Any]) -> list[Delivery]:
    """One event for the held rows `webhooks`, sent once the transaction has committed: its deliveries."""
    event = new_id("evt")
    body = orjson.dumps(
        {"id": event, "type": type, "created_at": utc_now(), "data": data}, option=orjson.OPT_UTC_Z
    ).decode()
    now = database_now(session)
    deliveries = [
        Delivery(
            id=new_id("dlv"),
            status="pending",
            webhook_id=webhook.id,
            project_id=webhook.project_id,
            event=event,
            type=type,
            body=body,
            next_attempt_at=now,
        )
        for webhook in webhooks
    ]
    session.add_all(deliveries)
    wake_sender(session)
    return deliveries


def wake_sender(session: Session) -> None:
    """Has what is due sent once the transaction has committed."""
    after_commit(session, "deliver", partial(wake, "deliver"))


def remove_expired() -> None:
    """Removes the deliveries that are kept no longer."""
    with writing() as session:
        session.execute(delete(Delivery).where(Delivery.created_at <= utc_now() - KEPT))
