"""`burnish workers`: the processes that train and keep house."""

from __future__ import annotations

import typer

from app.cli.client import connect
from app.cli.listing import print_page
from app.cli.options import After, Json, Limit
from app.cli.output import Column

COLUMNS = (
    Column("name", "name"),
    Column("queue", "queue"),
    Column("status", "status"),
    Column("why", "reason"),
    Column("slots", "slots"),
    Column("busy", "busy_slots"),
    Column("last report", "heard_at"),
)


def workers(context: typer.Context, limit: Limit = 20, after: After = None, json: Json = False) -> None:
    """List workers: how many jobs each can train at once, how many it trains, and when it last reported."""
    with connect(context) as service:
        print_page(service.get("/workers", limit=limit, after=after), COLUMNS, json)
