"""`burnish webhooks`: add, list, test, enable, rotate, delete, and what was sent."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from app.cli import output
from app.cli.client import connect, segment
from app.cli.deleting import delete_object
from app.cli.listing import print_page
from app.cli.options import After, Json, Limit
from app.cli.output import Column

COLUMNS = (
    Column("id", "id"),
    Column("url", "url"),
    Column("events", "events", output.plain),
    Column("enabled", "enabled", output.plain),
    Column("disabled because", "disabled_reason"),
)
SECRET_COLUMNS = (Column("id", "id"), Column("secret", "secret"))
DELIVERY_COLUMNS = (
    Column("id", "id"),
    Column("type", "type"),
    Column("status", "status"),
    Column("attempts", "attempts"),
    Column("answer", "response_status"),
    Column("error", "error"),
    Column("created", "created_at"),
    Column("next try", "next_attempt_at"),
)

Webhook = Annotated[str, typer.Argument(help="The webhook's id.")]

commands = typer.Typer(no_args_is_help=True, help="Send what happens to jobs to a URL of yours.")


@commands.command("add", no_args_is_help=True)
def add(
    context: typer.Context,
    url: Annotated[str, typer.Argument(help="Where events are sent.")],
    event: Annotated[
        list[str] | None,
        typer.Option("--event", metavar="TYPE", help="Such as job.succeeded; several times. Default: all."),
    ] = None,
    json: Json = False,
) -> None:
    """Add a webhook. Its secret, which signs what is sent, is shown once."""
    with connect(context) as service:
        made = service.post("/webhooks", {"url": url, "events": event or None})
    if json:
        output.print_json(made)
    else:
        output.print_table(SECRET_COLUMNS, [made])


@commands.command("list")
def list_(context: typer.Context, limit: Limit = 20, after: After = None, json: Json = False) -> None:
    """List webhooks, newest first."""
    with connect(context) as service:
        print_page(service.get("/webhooks", limit=limit, after=after), COLUMNS, json)


@commands.command("delete")
def delete(context: typer.Context, id: Webhook) -> None:
    """Delete a webhook."""
    with connect(context) as service:
        delete_object(service, "webhook", "/webhooks", id, label="url")


def _print_change(webhook: dict[str, Any], json: bool) -> None:
    if json:
        output.print_json(webhook)
    else:
        output.print_table(COLUMNS, [webhook])


@commands.command("enable")
def enable(context: typer.Context, id: Webhook, json: Json = False) -> None:
    """Go on sending to a webhook that is disabled."""
    with connect(context) as service:
        _print_change(service.patch(f"/webhooks/{segment(id)}", {"enabled": True}), json)


@commands.command("disable")
def disable(context: typer.Context, id: Webhook, json: Json = False) -> None:
    """Send nothing to a webhook until it is enabled. What happens meanwhile is not sent later."""
    with connect(context) as service:
        _print_change(service.patch(f"/webhooks/{segment(id)}", {"enabled": False}), json)


@commands.command("rotate")
def rotate(context: typer.Context, id: Webhook, json: Json = False) -> None:
    """Give a webhook a new secret, and print it. For 24 hours the old one signs as well."""
    with connect(context) as service:
        made = service.post(f"/webhooks/{segment(id)}/rotate")
    if json:
        output.print_json(made)
    else:
        output.print_table(SECRET_COLUMNS, [made])


@commands.command("test")
def send_test(context: typer.Context, id: Webhook, json: Json = False) -> None:
    """Send a test event to a webhook."""
    with connect(context) as service:
        delivery = service.post(f"/webhooks/{segment(id)}/test")
    if json:
        output.print_json(delivery)
    else:
        output.say(f"Sending {delivery['id']}. See what came of it: burnish webhooks deliveries {id}")


@commands.command("deliveries")
def deliveries(
    context: typer.Context,
    id: Webhook,
    status: Annotated[str | None, typer.Option(metavar="pending|delivered|failed", help="Only these.")] = None,
    limit: Limit = 20,
    after: After = None,
    json: Json = False,
) -> None:
    """List what was sent to a webhook, or waits to be sent, newest first."""
    with connect(context) as service:
        page = service.get(f"/webhooks/{segment(id)}/deliveries", status=status, limit=limit, after=after)
        print_page(page, DELIVERY_COLUMNS, json)
