"""`burnish keys`: make, list, revoke."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import typer

from app.cli.client import connect, segment
from app.cli.failure import Failure
from app.cli.listing import print_page
from app.cli.options import After, Json, Limit
from app.cli.output import Column, moment_shown

COLUMNS = (
    Column("id", "id"),
    Column("name", "name"),
    Column("project", "project"),
    Column("role", "role"),
    Column("expires", "expires_at", moment_shown),
    Column("last used", "last_used_at", moment_shown),
)

commands = typer.Typer(no_args_is_help=True, help="Make, list and revoke keys. Commands send BURNISH_API_KEY.")


@commands.command("create")
def create(
    context: typer.Context,
    role: Annotated[str, typer.Option(metavar="admin|write|read|infer", help="What it may do.")] = "write",
    project: Annotated[str | None, typer.Option(help="The project that it opens. Default: that of your key.")] = None,
    name: Annotated[str, typer.Option(help="A label.")] = "key",
    days: Annotated[int | None, typer.Option(min=1, help="It expires after so many days. Default: never.")] = None,
    admin: Annotated[
        bool, typer.Option("--admin", help="An admin's key, made in this machine's database: the service need not run.")
    ] = False,
) -> None:
    """Make a key, which is shown once."""
    expires = datetime.now(UTC) + timedelta(days=days) if days else None
    if admin:
        typer.echo(_create_here(project, name, expires))
        return
    body: dict[str, Any] = {"role": role, "name": name, "project": project}
    body |= {"expires_at": expires.isoformat()} if expires else {}
    with connect(context) as service:
        typer.echo(service.post("/keys", {field: value for field, value in body.items() if value is not None})["key"])


def _create_here(project: str | None, name: str, expires: datetime | None) -> str:
    from app.kit.database import DEFAULT_PROJECT
    from app.kit.errors import ServiceError
    from app.projects.service import create_key
    from app.up import migrate

    migrate()
    try:
        return create_key(project or DEFAULT_PROJECT, "admin", name, expires)[1]
    except ServiceError as error:
        raise Failure(error.message, hint=error.hint) from error


@commands.command("list")
def list_(context: typer.Context, limit: Limit = 20, after: After = None, json: Json = False) -> None:
    """List keys, newest first."""
    with connect(context) as service:
        print_page(service.get("/keys", limit=limit, after=after), COLUMNS, json)


@commands.command("revoke")
def revoke(context: typer.Context, id: Annotated[str, typer.Argument(help="The key's id.")]) -> None:
    """Revoke a key at once."""
    with connect(context) as service:
        service.delete(f"/keys/{segment(id)}")
