"""`burnish backup` and `burnish restore`: they work on the database and the storage of this machine's settings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from app.cli.failure import Failure

if TYPE_CHECKING:
    from app.backup.archive import Manifest


def backup(
    path: Annotated[Path, typer.Argument(metavar="FILE", help="The file to write, such as burnish.tar.")],
) -> None:
    """Save the whole service to one file. It may go on running."""
    from app.backup.writing import write_backup

    typer.echo(f"Backed up {_told(_done(write_backup, path))} to {path}.")


def restore(path: Annotated[Path, typer.Argument(metavar="FILE", help="A file that `burnish backup` wrote.")]) -> None:
    """Restore a backup into an empty service. Run it before `burnish up`."""
    from app.backup.restoring import restore_backup

    manifest = _done(restore_backup, path)
    typer.echo(f"Restored {_told(manifest)}, as of {manifest.created_at}.")


def _done(work: Callable[[Path], Manifest], path: Path) -> Manifest:
    import app.tables
    from app.kit.errors import ServiceError

    assert app.tables.TABLES
    try:
        return work(path)
    except ServiceError as error:
        raise Failure(error.message, hint=error.hint) from error
    except OSError as error:
        raise Failure(f"'{path}': {error}", hint="Look at the disk and at who may write there.") from error


def _told(manifest: Manifest) -> str:
    tables, files = manifest.tables, sum(map(len, manifest.folders.values())) + len(manifest.blobs)
    return f"{tables['datasets'].rows} datasets, {tables['jobs'].rows} jobs, {tables['models'].rows} models and {files} files"
