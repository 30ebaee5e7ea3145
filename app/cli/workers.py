"""`burnish workers`: who trains and looks after things."""

from __future__ import annotations

import typer

from app.cli.client import connect
from app.cli.listing import print_page
from app.cli.options import After, Json, Limit
from app.cli.output import Column, moment_shown

COLUMNS = (
    Column("name", "name"),
    Column("queue", "queue"),
    Column("status", "status"),
    Column("why", "reason"),
    Column("slots", "slots"),
    Column("busy", "busy_slots"),
    Column("last heard", "heard_at", moment_shown),
)


def workers(context: typer.Context, limit: Limit = 20, after: After = None, json: Json = False) -> None:
    """List the workers: what each has, does, and when it was last heard of."""
    with connect(context) as service:
        print_page(service.get("/workers", limit=limit, after=after), COLUMNS, json)
