"""One page of a list, as a table or as the service sent it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from app.cli import output


def print_page(page: dict[str, Any], columns: Sequence[output.Column], json: bool) -> None:
    """Prints the page, and says how to see what follows it."""
    if json:
        output.print_json(page)
        return
    output.print_table(columns, page["data"])
    if page["has_more"]:
        output.say(f"There are more: --after {page['data'][-1]['id']}, or a larger --limit.")
