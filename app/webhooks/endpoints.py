"""Routes of webhooks."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Query

from app.kit.errors import errors
from app.kit.pagination import Page, Paging, page_of
from app.kit.paths import Id
from app.kit.routing import NativeRoute
from app.projects.access import ToCreate, ToRead, ToWrite
from app.webhooks import service
from app.webhooks.schemas import (
    DeliveryOut,
    DeliveryStatus,
    WebhookCreate,
    WebhookCreated,
    WebhookOut,
    WebhookPatch,
    delivery_out,
    webhook_created,
    webhook_out,
)

router = APIRouter(prefix="/webhooks", tags=["webhooks"], route_class=NativeRoute)

StatusFilter = Annotated[DeliveryStatus | None, Query(description="Only deliveries of this status.")]


@router.post("", status_code=201, summary="Ask to be told of events", responses=errors(409, 422))
def create_webhook(request: WebhookCreate, project: ToCreate) -> WebhookCreated:
    return webhook_created(*service.create(project, request))


@router.get("", summary="List webhooks", responses=errors(422))
def list_webhooks(project: ToRead, page: Annotated[Paging, page_of("hook")]) -> Page[WebhookOut]:
    webhooks, more = service.list_webhooks(project, page)
    return Page(data=[webhook_out(webhook) for webhook in webhooks], has_more=more)


@router.get("/{id}", summary="Get a webhook, without its secret", responses=errors(404))
def get_webhook(id: Id, project: ToRead) -> WebhookOut:
    return webhook_out(service.get(project, id))


@router.patch("/{id}", summary="Change a webhook", responses=errors(404, 422))
def change_webhook(id: Id, request: WebhookPatch, project: ToWrite) -> WebhookOut:
    return webhook_out(service.change(project, id, request))


@router.post("/{id}/rotate", summary="Give a webhook a new secret", responses=errors(404))
def rotate_webhook(id: Id, project: ToWrite) -> WebhookCreated:
    return webhook_created(*service.rotate(project, id))


@router.delete("/{id}", status_code=204, summary="Delete a webhook", responses=errors(404))
def delete_webhook(id: Id, project: ToWrite) -> None:
    service.delete(project, id)


@router.post("/{id}/test", status_code=202, summary="Send a webhook a test event", responses=errors(404, 409))
def test_webhook(id: Id, project: ToCreate) -> DeliveryOut:
    return delivery_out(service.test(project, id))


@router.get("/{id}/deliveries", summary="What was sent to a webhook, and what waits", responses=errors(404, 422))
def list_deliveries(
    id: Id,
    project: ToRead,
    page: Annotated[Paging, page_of("dlv")],
    status: StatusFilter = None,
) -> Page[DeliveryOut]:
    deliveries, more = service.list_deliveries(project, id, page, status)
    return Page(data=[delivery_out(delivery) for delivery in deliveries], has_more=more)


@router.post("/{id}/deliveries/{delivery}/resend", summary="Send an event again", responses=errors(404, 409))
def resend_delivery(
    id: Id, delivery: Annotated[str, Path(description="The delivery's id.")], project: ToWrite
) -> DeliveryOut:
    return delivery_out(service.resend(project, id, delivery))
