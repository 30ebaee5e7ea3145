"""Sends a file, and shows how far it has got."""

from __future__ import annotations

from collections.abc import Callable
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.cli import output

if TYPE_CHECKING:
    from app.cli.client import Service


class CountedFile(FileIO):
    """A file that tells how many bytes each reading of it gave."""

    def __init__(self, path: Path, told: Callable[[int], None]) -> None:
        super().__init__(path)
        self._told = told

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(size) or b""
        self._told(len(data))
        return data


def upload(service: Service, file: Path, **fields: Any) -> tuple[dict[str, Any], bool]:
    """The dataset that the service makes of `file`, and whether it is new. Raises `Failure`."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    console = output.stderr()
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(binary_units=True), TransferSpeedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("Uploading", total=file.stat().st_size)

        def told(count: int) -> None:
            progress.update(task, advance=count, description="Uploading" if count else "Reading the rows")

        with CountedFile(file, told) as stream:
            return service.upload("/datasets", stream, file.name, **fields)
