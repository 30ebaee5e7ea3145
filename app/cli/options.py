"""Options that several commands share. Allowed values are the service's to check: its refusal names them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from app.cli.failure import Failure

Json = Annotated[bool, typer.Option("--json", help="Print the object as the service sent it.")]
Limit = Annotated[int, typer.Option(help="At most this many (1 to 1000).")]
After = Annotated[str | None, typer.Option(metavar="ID", help="Continue after this one.")]
ChatTemplate = Annotated[
    str | None,
    typer.Option(
        metavar="FILE|NAME", help="A Jinja file, or the name of a common template: chatml, llama3, mistral, …"
    ),
]
TemplateArguments = Annotated[
    list[str] | None,
    typer.Option(
        "--template-argument", metavar="NAME=VALUE", help="An argument of the template. Repeat it to add others."
    ),
]


def template_fields(template: str | None, arguments: list[str] | None) -> dict[str, Any]:
    """The fields of a body that these options stand for. Raises `Failure`."""
    fields: dict[str, Any] = {}
    if template is not None:
        path = Path(template)
        try:
            fields["chat_template"] = path.read_text(encoding="utf-8") if path.is_file() else template
        except (OSError, UnicodeDecodeError) as error:
            raise Failure(f"{path} cannot be read: {error}", param="chat_template") from error
    if arguments:
        fields["template_arguments"] = dict(map(_argument, arguments))
    return fields


def _argument(given: str) -> tuple[str, Any]:
    name, equals, value = given.partition("=")
    if not equals:
        hint = "--template-argument enable_thinking=false, for instance."
        raise Failure(f"'{given}' is not NAME=VALUE.", param="template_arguments", hint=hint)
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value
