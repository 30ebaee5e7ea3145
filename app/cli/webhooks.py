"""`burnish webhooks`: add, list, delete, and what was sent."""

from __future__ import annotations

from typing import Annotated

import typer

from app.cli import output
from app.cli.client import connect, segment
from app.cli.listing import print_page
from app.cli.options import After, Json, Limit
from app.cli.output import Column, moment_shown

COLUMNS = (
    Column("id", "id"),
    Column("url", "url"),
    Column("events", "events", output.plain),
    Column("enabled", "enabled", output.plain),
    Column("disabled because", "disabled_reason"),
)
DELIVERY_COLUMNS = (
    Column("id", "id"),
    Column("type", "type"),
    Column("status", "status"),
    Column("attempts", "attempts"),
    Column("answer", "response_status"),
    Column("error", "error"),
    Column("created", "created_at", moment_shown),
    Column("next try", "next_attempt_at", moment_shown),
)

Webhook = Annotated[str, typer.Argument(help="The webhook's id.")]

commands = typer.Typer(no_args_is_help=True, help="Have a URL told of what happens to jobs.")


@commands.command("add", no_args_is_help=True)
def add(
    context: typer.Context,
    url: Annotated[str, typer.Argument(help="Where events are sent.")],
    event: Annotated[
        list[str] | None,
        typer.Option("--event", metavar="TYPE", help="As job.succeeded; may be repeated. Default: all."),
    ] = None,
    json: Json = False,
) -> None:
    """Add a webhook. Its secret, which signs what is sent, is shown once."""
    with connect(context) as service:
        made = service.post("/webhooks", {"url": url, "events": event or None})
    if json:
        output.print_json(made)
    else:
        output.print_table((Column("id", "id"), Column("secret", "secret")), [made])


@commands.command("list")
def list_(context: typer.Context, limit: Limit = 20, after: After = None, json: Json = False) -> None:
    """List webhooks, newest first."""
    with connect(context) as service:
        print_page(service.get("/webhooks", limit=limit, after=after), COLUMNS, json)


@commands.command("delete")
def delete(context: typer.Context, id: Webhook) -> None:
    """Delete a webhook."""
    with connect(context) as service:
        service.delete(f"/webhooks/{segment(id)}")


@commands.command("deliveries")
def deliveries(
    context: typer.Context,
    id: Webhook,
    status: Annotated[str | None, typer.Option(metavar="pending|delivered|failed", help="Only these.")] = None,
    limit: Limit = 20,
    after: After = None,
    json: Json = False,
) -> None:
    """What was sent to a webhook, and what waits; newest first."""
    with connect(context) as service:
        page = service.get(f"/webhooks/{segment(id)}/deliveries", status=status, limit=limit, after=after)
        print_page(page, DELIVERY_COLUMNS, json)
