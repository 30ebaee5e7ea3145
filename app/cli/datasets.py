"""`burnish datasets`: upload, list, show, delete."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from app.cli import output
from app.cli.client import connect, segment
from app.cli.failure import Failure
from app.cli.listing import print_page
from app.cli.options import After, Json, Limit
from app.cli.output import Column, bytes_shown, moment_shown

COLUMNS = (
    Column("id", "id"),
    Column("name", "name"),
    Column("format", "format"),
    Column("rows", "rows"),
    Column("size", "bytes", bytes_shown),
    Column("created", "created_at", moment_shown),
)
CHUNK_BYTES = 256 * 2**10

commands = typer.Typer(no_args_is_help=True, help="Upload, list and delete datasets.")


@commands.command("add")
def add(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, readable=True, help="JSONL, or a JSON array.")],
    name: Annotated[str | None, typer.Option(help="A label. Default: the file's name.")] = None,
    format: Annotated[str | None, typer.Option(metavar="auto|alpaca|openai", help="How rows are read.")] = None,
    json: Json = False,
) -> None:
    """Upload a file. It is streamed from disk; rows that cannot be read are listed, and then nothing is stored."""
    with connect(context) as service:
        dataset = _upload(service, file, name=name or file.name, format=format)
    if json:
        output.print_json(dataset)
    else:
        output.print_table(COLUMNS, [dataset])
        output.say(f"Train on it: burnish jobs create demo-base {dataset['id']}")


def _upload(service: Any, file: Path, **fields: Any) -> Any:
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    console = output.stderr()
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(binary_units=True), TransferSpeedColumn())
    size = file.stat().st_size
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("Uploading", total=size)

        def chunks() -> Iterator[bytes]:
            left = size
            with file.open("rb") as stream:
                while left:
                    chunk = stream.read(min(CHUNK_BYTES, left))
                    if not chunk:
                        raise Failure(f"{file} became shorter while it was uploaded.", hint="Upload it again.")
                    left -= len(chunk)
                    yield chunk
                    progress.advance(task, len(chunk))
            progress.update(task, description="Reading the rows")

        return service.upload("/datasets", chunks(), size, **fields)


@commands.command("list")
def list_datasets(context: typer.Context, limit: Limit = 20, after: After = None, json: Json = False) -> None:
    """List datasets, newest first."""
    with connect(context) as service:
        print_page(service.get("/datasets", limit=limit, after=after), COLUMNS, json)


@commands.command("show")
def show(context: typer.Context, id: str, json: Json = False) -> None:
    """Show one dataset."""
    with connect(context) as service:
        dataset = service.get(f"/datasets/{segment(id)}")
    (output.print_json if json else output.print_object)(dataset)


@commands.command("delete")
def delete(context: typer.Context, id: str) -> None:
    """Delete a dataset that no unfinished job uses."""
    with connect(context) as service:
        service.delete(f"/datasets/{segment(id)}")
    output.say(f"Deleted {id}.")
