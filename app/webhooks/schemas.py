"""Webhooks on the wire."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from app.kit.wire import Metadata, Strict
from app.webhooks.tables import Delivery, Webhook

# `job.` and what the table of a job's states calls its events.
EventType = Literal[
    "job.created",
    "job.started",
    "job.requeued",
    "job.succeeded",
    "job.failed",
    "job.cancelled",
    "job.paused",
    "job.resumed",
    "job.retried",
]
DeliveryStatus = Literal["pending", "delivered", "failed"]

Url = Annotated[str, Field(max_length=2000, description="Where events are sent: http or https.")]
Events = Annotated[
    list[EventType], Field(min_length=1, max_length=100, description="Types of events to be told of. Null: all.")
]


class WebhookCreate(Strict):
    """Asks to be told of events."""

    url: Url = Field(examples=["https://example.org/burnish"])
    events: Events | None = Field(None, description="Types of events to be told of. Null: all, also later ones.")
    metadata: Metadata = Field(default_factory=dict)


class WebhookPatch(Strict):
    """Changes a webhook: what is named changes."""

    url: Url | None = Field(None, description="Where events are sent from now on.")
    events: Events | None = Field(None, description="Types of events to be told of. Null: all, also later ones.")
    enabled: bool | None = Field(None, description="False: nothing is sent, and what happens meanwhile is not told.")


class WebhookOut(BaseModel):
    """A webhook, without its secret."""

    id: str
    object: Literal["webhook"] = "webhook"
    url: str
    events: list[EventType] | None = Field(description="Null: all.")
    enabled: bool
    disabled_reason: str | None = Field(description="Why the service disabled it.")
    metadata: Metadata
    created_at: datetime


class WebhookCreated(WebhookOut):
    """A webhook as it is shown once."""

    secret: str = Field(description="What its messages are signed with. Shown here and never again.")


class DeliveryOut(BaseModel):
    """An event on its way to a webhook."""

    id: str
    object: Literal["delivery"] = "delivery"
    webhook: str = Field(description="The webhook's id.")
    event: str = Field(description="The event's id: `webhook-id` of every attempt.")
    type: EventType | Literal["webhook.test"]
    status: DeliveryStatus
    attempts: int
    response_status: int | None = Field(description="HTTP status of the last attempt; null: there was no answer.")
    error: str | None = Field(description="Why the last attempt failed.")
    next_attempt_at: datetime | None = Field(description="Null: it is not tried again.")
    created_at: datetime
    delivered_at: datetime | None


def webhook_out(webhook: Webhook) -> WebhookOut:
    """A webhook on the wire."""
    return WebhookOut(**_fields(webhook))


def webhook_created(webhook: Webhook, secret: str) -> WebhookCreated:
    """A webhook on the wire, with its new secret."""
    return WebhookCreated(**_fields(webhook), secret=secret)


def _fields(webhook: Webhook) -> dict[str, Any]:
    names = ("id", "url", "events", "enabled", "disabled_reason", "created_at")
    return {name: getattr(webhook, name) for name in names} | {"metadata": webhook.meta}


def delivery_out(delivery: Delivery) -> DeliveryOut:
    """A delivery on the wire."""
    names = ("id", "event", "type", "status", "response_status", "error", "created_at", "delivered_at")
    return DeliveryOut(
        **{name: getattr(delivery, name) for name in names},
        webhook=delivery.webhook_id,
        attempts=delivery.attempt,
        next_attempt_at=delivery.next_attempt_at if delivery.status == "pending" else None,
    )
