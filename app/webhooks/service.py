"""What can be done with webhooks."""

from __future__ import annotations

import httpx
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.kit.database import database_now, reading, utc_now, writing
from app.kit.errors import Conflict, InvalidValue, NotFound
from app.kit.ids import new_id
from app.kit.pagination import Paging, newest_first
from app.kit.sealing import seal
from app.projects.audit import record
from app.projects.idempotency import creating, remember
from app.projects.limits import lock_project
from app.webhooks.addresses import is_allowed, literal
from app.webhooks.outbox import put, wake_sender
from app.webhooks.schemas import WebhookCreate, WebhookPatch, delivery_out, webhook_created
from app.webhooks.signing import new_secret
from app.webhooks.tables import Delivery, Webhook

# Of one project: each may hold up one sender.
MOST_WEBHOOKS = 20


def create(project_id: str, request: WebhookCreate) -> tuple[Webhook, str]:
    """Makes a webhook: it, and the secret that is shown once. Raises `InvalidValue` for its URL, `Conflict` where there are
    too many."""
    require_reachable(request.url)
    secret = new_secret()
    with creating() as session:
        lock_project(session, project_id)
        count = session.scalar(select(func.count()).where(Webhook.project_id == project_id)) or 0
        if count >= MOST_WEBHOOKS:
            raise Conflict(
                f"The project has {count} webhooks; {MOST_WEBHOOKS} is the most.",
                code="limit_reached",
                hint="Delete one, or have one receiver pass events on.",
            )
        webhook = Webhook(
            id=new_id("hook"),
            project_id=project_id,
            url=request.url,
            events=request.events,
            sealed=seal(secret.encode()),
            meta=request.metadata,
        )
        session.add(webhook)
        session.flush()
        record(session, "webhook.create", webhook.id, host=_host(webhook))
        remember(session, 201, webhook_created(webhook, secret))
    return webhook, secret


def require_reachable(url: str) -> None:
    """Raises `InvalidValue` where nothing can be sent to this URL, as far as that can be seen without asking for addresses."""
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise _bad_url(f"cannot be read: {error}") from error
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise _bad_url("is not one of http or https")
    if parsed.port is not None and not 1 <= parsed.port <= 65535:
        raise _bad_url(f"names the port {parsed.port}, which there is not")
    if parsed.userinfo:
        raise _bad_url("holds credentials", "The signature says who sends; leave them out.")
    address = literal(parsed.host)
    if address is not None and not is_allowed(address):
        raise _bad_url(
            f"leads to {parsed.host}, which is not a public address",
            "BURNISH_WEBHOOK_NETWORKS allows further networks.",
        )


def _bad_url(what: str, hint: str = "Give one such as https://example.org/burnish.") -> InvalidValue:
    return InvalidValue(f"The URL {what}.", param="url", hint=hint)


def list_webhooks(project_id: str, paging: Paging) -> tuple[list[Webhook], bool]:
    """One page of the project's webhooks, newest first."""
    with reading() as session:
        return newest_first(session, select(Webhook).where(Webhook.project_id == project_id), Webhook.id, paging)


def get(project_id: str, id: str) -> Webhook:
    """The webhook. Raises `NotFound`."""
    with reading() as session:
        return _find(session, project_id, id)


def change(project_id: str, id: str, request: WebhookPatch) -> Webhook:
    """Changes what is named. Raises `NotFound`, and `InvalidValue` for the URL."""
    changes = request.model_dump(exclude_unset=True)
    for name in ("url", "enabled"):
        if name in changes and changes[name] is None:
            raise InvalidValue(f"The field '{name}' cannot be null.", param=name, hint="Leave it out to keep it.")
    if request.url is not None:
        require_reachable(request.url)
    with writing() as session:
        webhook = _find(session, project_id, id, lock=True)
        for name, value in changes.items():
            setattr(webhook, name, value)
        if "enabled" in changes:
            webhook.disabled_reason = None
        record(session, "webhook.change", webhook.id, fields=sorted(changes), host=_host(webhook))
        wake_sender(session)
        return webhook


def rotate(project_id: str, id: str) -> tuple[Webhook, str]:
    """Gives the webhook a new secret, which is shown once; for a day the old one signs too. Raises `NotFound`."""
    secret = new_secret()
    with writing() as session:
        webhook = _find(session, project_id, id, lock=True)
        webhook.sealed_before, webhook.sealed, webhook.rotated_at = webhook.sealed, seal(secret.encode()), utc_now()
        record(session, "webhook.rotate", webhook.id)
        return webhook, secret


def delete(project_id: str, id: str) -> None:
    """Removes a webhook with its deliveries, also those on their way. Raises `NotFound`."""
    with writing() as session:
        webhook = _find(session, project_id, id, lock=True)
        record(session, "webhook.delete", webhook.id, host=_host(webhook))
        session.delete(webhook)


def test(project_id: str, id: str) -> Delivery:
    """Sends the webhook an event that tells of nothing. Raises `NotFound`, and `Conflict` where it is disabled."""
    with creating() as session:
        webhook = _find(session, project_id, id, lock=True)
        _require_enabled(webhook)
        (delivery,) = put(session, [webhook], "webhook.test", {"webhook": webhook.id})
        session.flush()
        record(session, "webhook.test", webhook.id, delivery=delivery.id)
        remember(session, 202, delivery_out(delivery))
    return delivery


def list_deliveries(project_id: str, id: str, paging: Paging, status: str | None) -> tuple[list[Delivery], bool]:
    """One page of what was sent or is to be sent to the webhook, newest first. Raises `NotFound`."""
    with reading() as session:
        query = select(Delivery).where(Delivery.webhook_id == _find(session, project_id, id).id)
        if status:
            query = query.where(Delivery.status == status)
        return newest_first(session, query, Delivery.id, paging)


def resend(project_id: str, id: str, delivery_id: str) -> Delivery:
    """Sends a delivery now: one that waits before its time, one that ended once more, with all its tries. Raises `NotFound`,
    and `Conflict` where the webhook is disabled."""
    with writing() as session:
        webhook = _find(session, project_id, id, lock=True)
        query = select(Delivery).where(Delivery.webhook_id == webhook.id, Delivery.id == delivery_id)
        delivery = session.scalars(query.with_for_update(of=Delivery)).first()
        if delivery is None:
            raise NotFound(
                f"The delivery '{delivery_id}' does not exist.",
                code="delivery_not_found",
                hint="GET /webhooks/{id}/deliveries lists those that do.",
            )
        _require_enabled(webhook)
        if delivery.status != "pending":
            delivery.status, delivery.delivered_at, delivery.retried_after = "pending", None, delivery.attempt
        delivery.next_attempt_at = database_now(session)
        record(session, "webhook.resend", webhook.id, delivery=delivery.id)
        wake_sender(session)
        return delivery


def _host(webhook: Webhook) -> str:
    """What the audit log has of a URL: the rest of it may be as good as a password."""
    return httpx.URL(webhook.url).host


def _require_enabled(webhook: Webhook) -> None:
    if not webhook.enabled:
        raise Conflict(
            f"The webhook {webhook.id} is disabled.",
            hint=f'Enable it with PATCH /webhooks/{webhook.id} {{"enabled": true}}.',
        )


def _find(session: Session, project_id: str, id: str, *, lock: bool = False) -> Webhook:
    query = select(Webhook).where(Webhook.project_id == project_id, Webhook.id == id)
    webhook = session.scalars(query.with_for_update(of=Webhook) if lock else query).first()
    if webhook is None:
        raise NotFound(
            f"The webhook '{id}' does not exist.", code="webhook_not_found", hint="GET /webhooks lists those that do."
        )
    return webhook
