"""`burnish keys`: create, list, limit, rotate, revoke."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import typer

from app.cli import limits, output
from app.cli.client import connect, segment
from app.cli.deleting import delete_object
from app.cli.failure import Failure
from app.cli.listing import print_page
from app.cli.options import After, Json, Limit
from app.cli.output import Column

COLUMNS = (
    Column("id", "id"),
    Column("name", "name"),
    Column("project", "project"),
    Column("role", "role"),
    Column("limits", "limits", limits.shown),
    Column("expires", "expires_at"),
    Column("last used", "last_used_at"),
)

Key = Annotated[str, typer.Argument(metavar="KEY", help="The key's name or id.")]

commands = typer.Typer(
    no_args_is_help=True, help="Create, list, limit and revoke keys. Commands send the key in BURNISH_API_KEY."
)


@commands.command("create")
def create(
    context: typer.Context,
    role: Annotated[str, typer.Option(metavar="admin|write|read|infer", help="What the key may do.")] = "write",
    project: Annotated[str | None, typer.Option(help="The project it opens: a name or id. Default: your own.")] = None,
    name: Annotated[str, typer.Option(help="A label.")] = "key",
    days: Annotated[int | None, typer.Option(min=1, help="Days until it expires. Default: never.")] = None,
    admin: Annotated[
        bool,
        typer.Option("--admin", help="Create an admin's key in this machine's database. The service need not run."),
    ] = False,
) -> None:
    """Create a key, and print it. It is shown this once."""
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


@commands.command("limits")
def change_limits(
    context: typer.Context,
    key: Key,
    requests_per_minute: limits.RequestsPerMinute = None,
    tokens_per_minute: limits.TokensPerMinute = None,
    json: Json = False,
) -> None:
    """Set a key's limits, and print them. `none` lifts a limit; what is not given stays."""
    wanted = limits.fields(requests_per_minute=requests_per_minute, tokens_per_minute=tokens_per_minute)
    with connect(context) as service:
        limits.change(service, "/keys", key, wanted, json)


@commands.command("rotate")
def rotate(context: typer.Context, key: Key) -> None:
    """Replace a key by a new one, and print that. The old one is invalid at once."""
    with connect(context) as service:
        made = service.post(f"/keys/{segment(key)}/rotate")
    typer.echo(made["key"])
    output.say(f"Rotated key {made['name']} ({made['id']}).")


@commands.command("revoke")
def revoke(
    context: typer.Context,
    key: Annotated[str | None, typer.Argument(metavar="KEY", help="The key's name or id.")] = None,
    all: Annotated[
        bool,
        typer.Option(
            "--all", help="Every key in this machine's database, the last admin's too: requests need none any more."
        ),
    ] = False,
) -> None:
    """Revoke a key at once, or all of them."""
    if all == (key is not None):
        raise Failure("Give a key's name or id, or --all.")
    if key is None:
        typer.echo(_revoke_all_here())
        return
    with connect(context) as service:
        delete_object(service, "key", "/keys", key, done="Revoked")


def _revoke_all_here() -> str:
    from app.kit.guards import is_exposed
    from app.projects.service import delete_all_keys
    from app.settings import get_settings
    from app.up import migrate

    settings = get_settings()
    if is_exposed(settings):
        raise Failure(
            "This service is reached from other machines, so it needs keys.",
            hint="First set BURNISH_HOST=127.0.0.1, unset BURNISH_PUBLIC_URL and restart the service.",
        )
    migrate()
    count = delete_all_keys()
    revoked = f"Revoked {count} key{'' if count == 1 else 's'}."
    if settings.admin_key:
        return f"{revoked} Requests still need BURNISH_ADMIN_KEY, until it is unset and the service restarted."
    return f"{revoked} Requests need no key now: everyone on this machine is an admin of the project 'default'."
