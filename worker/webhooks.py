"""Sending webhooks what the outbox holds: claim a delivery, send it outside of any transaction, write how it went.

At least once: a sender that dies between the two leaves a lease that runs out, and the same event is sent again under the same id.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, and_, or_, select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session, aliased

from app.kit.database import database_now, utc_now, writing
from app.kit.leases import LeaseLost, claim, hold
from app.kit.sealing import Unreadable, unseal
from app.webhooks.signing import signed
from app.webhooks.tables import Delivery, Webhook
from worker.outbound import Unreachable, post

log = logging.getLogger(__name__)

# From sending until an answer.
ANSWER_SECONDS = 15.0
# Longer than a sender that lives can need: the answer, and before it the resolver.
LEASE_SECONDS = 60.0
# From each failed try to the next one, in seconds, give or take a fifth; after as many tries and one it has failed.
PAUSES = (5, 30, 120, 600, 1800, 3600, 7200, 14400, 21600, 28800)
JITTER = 0.2
# How long an old secret signs beside the new one.
OVERLAP = timedelta(days=1)

# Senders only wait, so there may be many; each is held up by one receiver at most (see `due`).
_senders = ThreadPoolExecutor(32, "webhooks")
# While one claims, its row is locked and not yet to be seen as claimed: others would pass it by, to the same receiver.
_claiming = threading.Lock()


def due(now: datetime) -> ColumnElement[bool]:
    """Which deliveries are to be sent at `now` (the database's clock). To one webhook only one goes at a time: what is slow
    holds up nothing but itself."""
    other = aliased(Delivery)
    busy = select(other.webhook_id).where(other.status == "pending", other.lease_expires_at >= now)
    return and_(
        Delivery.status == "pending",
        Delivery.next_attempt_at <= now,
        or_(Delivery.lease_expires_at.is_(None), Delivery.lease_expires_at < now),
        Delivery.webhook_id.in_(select(Webhook.id).where(Webhook.enabled)),
        Delivery.webhook_id.not_in(busy),
    )


def deliver_due(shutting_down: threading.Event) -> None:
    """Has all that is due sent, by threads of this process, without waiting for it."""

    def send() -> None:
        try:
            # Whoever finds something has another look for more before sending it, and looks itself afterwards: what waited
            # for its turn at the same receiver is due then.
            while not shutting_down.is_set() and deliver_next(lambda: deliver_due(shutting_down)):
                pass
        except DBAPIError as error:
            log.warning("deliveries are left to the next round: %s", error)

    if not shutting_down.is_set():
        _senders.submit(send)


def deliver_next(claimed: Callable[[], None] = lambda: None) -> bool:
    """Sends the oldest delivery that is due, once; `claimed` is called before. False where there is none."""
    with _claiming, writing() as session:
        delivery = claim(session, Delivery, due(database_now(session)), LEASE_SECONDS)
        webhook = session.get_one(Webhook, delivery.webhook_id) if delivery else None
    if delivery is None or webhook is None:
        return False
    claimed()
    try:
        _settle(delivery, *_send(delivery, webhook))
    except LeaseLost:
        log.info("%s: attempt %d is not the current one any more, or was deleted", delivery.id, delivery.attempt)
    except DBAPIError as error:
        log.warning("%s: is sent again when its lease has run out (%s)", delivery.id, error)
    return True


def _send(delivery: Delivery, webhook: Webhook) -> tuple[int | None, str | None]:
    """The status of the answer, if there was one, and why this try failed, if it did."""
    body = delivery.body.encode()
    try:
        headers = signed(_secrets(webhook), delivery.event, int(time.time()), body)
        headers |= {"Content-Type": "application/json", "User-Agent": "Burnish"}
        status = post(webhook.url, headers, body, ANSWER_SECONDS)
    except Unreachable as error:
        return None, str(error)
    except Unreadable as error:
        return None, f"The secret cannot be opened: {error}. POST /webhooks/{webhook.id}/rotate makes a new one."
    except Exception:
        log.exception("%s: attempt %d failed in its sender", delivery.id, delivery.attempt)
        return None, "A fault in the sender; the housekeeping worker's log has the details."
    if 200 <= status < 300:
        return status, None
    redirected = "; redirects are not followed" if 300 <= status < 400 else ""
    return status, f"The receiver answered {status}{redirected}."


def _secrets(webhook: Webhook) -> list[str]:
    """What signs: the secret, and for a while the one before it. Raises `Unreadable`."""
    sealed = [webhook.sealed]
    if webhook.sealed_before and webhook.rotated_at and utc_now() - webhook.rotated_at < OVERLAP:
        sealed.append(webhook.sealed_before)
    return [unseal(each).decode() for each in sealed]


def _settle(delivery: Delivery, status: int | None, error: str | None) -> None:
    """Writes how a try went: delivered, to be tried again, or failed for good. Raises `LeaseLost`."""
    with writing() as session:
        if status == 410:
            _disable(session, delivery.webhook_id)
        row = hold(session, Delivery, delivery.id, delivery.attempt, "pending")
        row.lease_expires_at, row.response_status, row.error = None, status, error
        tries = row.attempt - row.retried_after
        if error is None:
            row.status, row.delivered_at = "delivered", utc_now()
        elif status == 410 or tries > len(PAUSES):
            row.status = "failed"
        else:
            pause = PAUSES[tries - 1] * random.uniform(1 - JITTER, 1 + JITTER)
            row.next_attempt_at = database_now(session) + timedelta(seconds=pause)


def _disable(session: Session, id: str) -> None:
    """Sends nothing more to a receiver that said 410. Before its delivery is held: whoever deletes the webhook takes the two
    in this order."""
    webhook = session.get(Webhook, id, with_for_update={"of": Webhook})
    if webhook is not None:
        webhook.enabled, webhook.disabled_reason = False, "The receiver answered 410: it wants no more."
