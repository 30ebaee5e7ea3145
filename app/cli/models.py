"""`burnish models`: register, list, show, delete."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from app.cli import output
from app.cli.client import Patience, Service, connect, segment
from app.cli.deleting import delete_object
from app.cli.failure import Failure
from app.cli.listing import print_page
from app.cli.options import After, ChatTemplate, Json, Limit, TemplateArguments, template_fields
from app.cli.output import Column

COLUMNS = (
    Column("name", "name"),
    Column("kind", "kind"),
    Column("status", "status"),
    Column("base", "base_model"),
    Column("parameters", "parameters"),
    Column("created", "created_at"),
)
GRANT_COLUMNS = (
    Column("project", "project_name"),
    Column("id", "project"),
    Column("since", "created_at"),
)
POLL_SECONDS = 0.5
# What a model of these states waits for.
DOING = {"downloading": "Downloading", "merging": "Merging"}

Name = Annotated[str, typer.Argument(metavar="MODEL", help="The model's name or id.")]
FineTune = Annotated[str, typer.Argument(metavar="MODEL", help="The fine-tune's name or id.")]

commands = typer.Typer(no_args_is_help=True, help="Register base models; list, grant and delete models.")


@commands.command("add")
def add(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="The model's name from now on.")],
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="A directory, modelscope://OWNER/NAME or hf://OWNER/NAME (also with @REVISION), or checkpoint://ID.",
        ),
    ],
    chat_template: ChatTemplate = None,
    template_arguments: TemplateArguments = None,
    architecture_only: Annotated[
        bool,
        typer.Option("--architecture-only", help="The directory has no weights. Stage pt starts with random ones."),
    ] = False,
    wait: Annotated[bool, typer.Option(help="Wait until the model is downloaded or merged.")] = True,
    json: Json = False,
) -> None:
    """Register a base model, or turn a job's checkpoint into a model."""
    body: dict[str, Any] = {"name": name, "source": _absolute(source), "architecture_only": architecture_only}
    body |= template_fields(chat_template, template_arguments)
    with connect(context) as service:
        model = service.post("/models", body)
        if wait and model["status"] in DOING:
            model = _prepared(service, model)
    if json:
        output.print_json(model)
    else:
        output.print_table(COLUMNS, [model])
    if error := model["error"]:
        raise Failure(error["message"], hint=error["hint"])


def _absolute(source: str) -> str:
    """The service has a working directory of its own: a directory that is here is named in full."""
    return str(Path(source).resolve()) if "://" not in source and Path(source).is_dir() else source


def _prepared(service: Service, model: dict[str, Any]) -> dict[str, Any]:
    """The model once it is no longer downloading or merging."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    doing = DOING[model["status"]]
    console, path = output.stderr(), f"/models/{segment(model['name'])}"
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(binary_units=True), TimeRemainingColumn())
    patience = Patience(output.say)
    patience.well()
    if not console.is_terminal:
        output.say(f"{doing} {model['source']} …")
    try:
        with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
            task = progress.add_task(doing, total=None)
            while model["status"] in DOING:
                time.sleep(POLL_SECONDS)
                try:
                    model = service.get(path)
                    patience.well()
                except Failure as failure:
                    patience.lost(failure)
                done = model["progress"] or {}
                progress.update(task, completed=done.get("bytes", 0), total=done.get("total_bytes"))
    except KeyboardInterrupt:
        output.say(f"\nThat goes on without you. See how far it is: burnish models show {model['name']}")
        raise typer.Exit(130) from None
    return model


@commands.command("list")
def list_models(
    context: typer.Context,
    kind: Annotated[str | None, typer.Option(metavar="base|adapter|merged|reward", help="Only these.")] = None,
    status: Annotated[
        str | None, typer.Option(metavar="downloading|merging|deploying|ready|failed", help="Only these.")
    ] = None,
    limit: Limit = 20,
    after: After = None,
    json: Json = False,
) -> None:
    """List models, newest first."""
    with connect(context) as service:
        print_page(service.get("/models", kind=kind, status=status, limit=limit, after=after), COLUMNS, json)


@commands.command("show")
def show(context: typer.Context, name: Name, json: Json = False) -> None:
    """Show one model."""
    with connect(context) as service:
        model = service.get(f"/models/{segment(name)}")
    (output.print_json if json else output.print_object)(model)


@commands.command("delete")
def delete(context: typer.Context, name: Name) -> None:
    """Delete a model that nothing is built on."""
    with connect(context) as service:
        delete_object(service, "model", "/models", name)


Project = Annotated[str, typer.Argument(metavar="PROJECT", help="Another project's name or id.")]


@commands.command("grant")
def grant(context: typer.Context, name: FineTune, project: Project) -> None:
    """Let another project see and ask a fine-tune of yours. For admins."""
    with connect(context) as service:
        granted = service.put(f"/models/{segment(name)}/grants/{segment(project)}", None)
    output.say(f"Granted {name} to project {granted['project_name']} ({granted['project']}).")


@commands.command("grants")
def grants(context: typer.Context, name: FineTune, json: Json = False) -> None:
    """List the projects that a fine-tune is granted to. For admins."""
    with connect(context) as service:
        print_page(service.get(f"/models/{segment(name)}/grants"), GRANT_COLUMNS, json)


@commands.command("revoke")
def revoke(context: typer.Context, name: FineTune, project: Project) -> None:
    """Take a grant back. For admins."""
    with connect(context) as service:
        service.delete(f"/models/{segment(name)}/grants/{segment(project)}")
    output.say(f"Revoked the grant of {name} to {project}.")
