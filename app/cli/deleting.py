"""Deletes one object, and says which one it was."""

from __future__ import annotations

from app.cli import output
from app.cli.client import Service, segment


def delete_object(
    service: Service, noun: str, path: str, name: str, *, label: str = "name", done: str = "Deleted"
) -> None:
    """Deletes the object that is called `name` in the list at `path`: by its id, so that what is named in the end is what was
    deleted. `label` is the field that people know it by."""
    found = service.get(f"{path}/{segment(name)}")
    service.delete(f"{path}/{segment(found['id'])}")
    output.say(f"{done} {noun} {found[label]} ({found['id']}).")
