"""`burnish usage` and `burnish audit`: what was used, and who changed what."""

from __future__ import annotations

from typing import Annotated

import typer

from app.cli import output
from app.cli.client import connect
from app.cli.listing import print_page
from app.cli.options import After, Json, Limit
from app.cli.output import Column

USAGE_COLUMNS = (
    Column("day", "day"),
    Column("model", "model"),
    Column("key", "key"),
    Column("requests", "requests"),
    Column("input tokens", "input_tokens"),
    Column("output tokens", "output_tokens"),
    Column("trained tokens", "trained_tokens"),
    Column("GPU time", "gpu_seconds"),
)
AUDIT_COLUMNS = (
    Column("when", "created_at"),
    Column("action", "action"),
    Column("target", "target"),
    Column("key", "key_name"),
    Column("role", "role"),
    Column("from", "address"),
    Column("details", "data", output.plain),
)


def usage(
    context: typer.Context,
    since: Annotated[str | None, typer.Option(metavar="YYYY-MM-DD", help="From this day on (UTC).")] = None,
    until: Annotated[str | None, typer.Option(metavar="YYYY-MM-DD", help="Up to this day, included.")] = None,
    model: Annotated[str | None, typer.Option(metavar="NAME", help="Only of this model.")] = None,
    key: Annotated[str | None, typer.Option(metavar="KEY", help="Only with this key: its name or id.")] = None,
    limit: Limit = 20,
    after: After = None,
    json: Json = False,
) -> None:
    """Show what your project used: requests, tokens and GPU time by day, model and key, newest first."""
    with connect(context) as service:
        page = service.get("/usage", since=since, until=until, model=model, key=key, limit=limit, after=after)
    print_page(page, USAGE_COLUMNS, json)


def audit(
    context: typer.Context,
    project: Annotated[str | None, typer.Option(help="Only in this project: its name or id.")] = None,
    key: Annotated[str | None, typer.Option(help="Only with this key: its name or id.")] = None,
    action: Annotated[str | None, typer.Option(metavar="NOUN.VERB", help="Only this, such as job.create.")] = None,
    target: Annotated[str | None, typer.Option(metavar="ID", help="Only what was done to this object.")] = None,
    limit: Limit = 20,
    after: After = None,
    json: Json = False,
) -> None:
    """Show who changed what, newest first. For admins."""
    with connect(context) as service:
        page = service.get("/audit", project=project, key=key, action=action, target=target, limit=limit, after=after)
    print_page(page, AUDIT_COLUMNS, json)
