"""Limits of projects and keys: the options that set them, and how they are shown."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

import typer

from app.cli import output
from app.cli.client import Service, segment

UNITS = {"": 1, "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}

Amount = int | Literal["none"]


def amount(text: str) -> Amount:
    """`600` → 600, `10GiB` → 10737418240; `none` lifts a limit. Raises `BadParameter`."""
    if text.lower() == "none":
        return "none"
    found = re.fullmatch(r"(\d+)\s*([a-z]*)", text.lower())
    if found is None or found[2] not in UNITS:
        raise typer.BadParameter(f"'{text}' is neither a number (such as 600, or 10GiB for bytes) nor none.")
    return int(found[1]) * UNITS[found[2]]


def _option(help: str) -> Any:
    return typer.Option(parser=amount, metavar="NUMBER|none", help=help)


RequestsPerMinute = Annotated[Any, _option("Requests in a minute, of any kind.")]
TokensPerMinute = Annotated[Any, _option("Tokens in a minute, of prompts and answers.")]
StorageBytes = Annotated[Any, _option("Bytes of uploads and fine-tunes, such as 100GiB.")]
UploadBytes = Annotated[Any, _option("Bytes of one upload, such as 2GiB.")]
RunningJobs = Annotated[Any, _option("Jobs that run at the same time.")]
QueuedJobs = Annotated[Any, _option("Jobs that wait at the same time.")]


def fields(**given: Amount | None) -> dict[str, int | None]:
    """The `limits` of a body: those that are given, null for one that is lifted."""
    return {name: None if value == "none" else value for name, value in given.items() if value is not None}


def change(service: Service, path: str, name: str, wanted: dict[str, int | None], json: bool) -> None:
    """Sets the limits `wanted` of the object, and prints all limits that it has then."""
    path = f"{path}/{segment(name)}"
    found = service.patch(path, {"limits": wanted}) if wanted else service.get(path)
    if json:
        output.print_json(found)
    elif any(value is not None for value in found["limits"].values()):
        output.print_object(found["limits"])
    else:
        output.say(f"{found['name']} ({found['id']}) has no limits.")


def shown(limits: dict[str, Any]) -> str:
    """`{"queued_jobs": 10, "upload_bytes": null}` → `queued jobs 10`."""
    return ", ".join(
        f"{name.replace('_', ' ')} {output.for_people(name, value)}"
        for name, value in limits.items()
        if value is not None
    )
