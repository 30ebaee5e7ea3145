"""`burnish secrets`: set, list, delete. A value is never an argument: other users of the machine could read it there."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from app.cli import output
from app.cli.client import connect, segment
from app.cli.listing import print_page
from app.cli.options import After, Json, Limit
from app.cli.output import Column

COLUMNS = (
    Column("name", "name"),
    Column("id", "id"),
    Column("created", "created_at"),
    Column("updated", "updated_at"),
)

Name = Annotated[str, typer.Argument(help="hf_token, modelscope_token, or a name of your own.")]

commands = typer.Typer(no_args_is_help=True, help="Keep a project's secrets, such as tokens of model hubs.")


@commands.command("set")
def set_secret(context: typer.Context, name: Name, json: Json = False) -> None:
    """Keep a secret; it replaces one of the same name. The value is asked for, or read from a pipe."""
    if sys.stdin.isatty():
        value = typer.prompt("Value (not shown)", hide_input=True, err=True)
    else:
        value = sys.stdin.read().removesuffix("\n")
    with connect(context) as service:
        secret = service.put(f"/secrets/{segment(name)}", {"value": value})
    if json:
        output.print_json(secret)
    else:
        output.say(f"Set secret {secret['name']}.")


@commands.command("list")
def list_secrets(context: typer.Context, limit: Limit = 20, after: After = None, json: Json = False) -> None:
    """List secrets, newest first. Values are never shown."""
    with connect(context) as service:
        print_page(service.get("/secrets", limit=limit, after=after), COLUMNS, json)


@commands.command("delete")
def delete(context: typer.Context, name: Name) -> None:
    """Delete a secret."""
    with connect(context) as service:
        service.delete(f"/secrets/{segment(name)}")
    output.say(f"Deleted secret {name}.")
