"""Options that several commands share. Allowed values are the service's to check: its refusal names them."""

from __future__ import annotations

from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="Print the object as the service sent it.")]
Limit = Annotated[int, typer.Option(help="How many at most (1 to 1000).")]
After = Annotated[str | None, typer.Option(metavar="ID", help="Go on after this one.")]
