"""`burnish projects`: create, list, show, limit, delete. All of it needs an admin's key."""

from __future__ import annotations

from typing import Annotated

import typer

from app.cli import limits, output
from app.cli.client import connect, segment
from app.cli.deleting import delete_object
from app.cli.listing import print_page
from app.cli.options import After, Json, Limit
from app.cli.output import Column

COLUMNS = (
    Column("id", "id"),
    Column("name", "name"),
    Column("limits", "limits", limits.shown),
    Column("created", "created_at"),
)

Project = Annotated[str, typer.Argument(metavar="PROJECT", help="The project's name or id.")]

commands = typer.Typer(no_args_is_help=True, help="Create, list, limit and delete projects. For admins.")


@commands.command("create")
def create(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="The new project's name.")],
    json: Json = False,
) -> None:
    """Create a project. Make a key for it next: burnish keys create --project NAME."""
    with connect(context) as service:
        project = service.post("/projects", {"name": name})
    if json:
        output.print_json(project)
        return
    output.print_table(COLUMNS, [project])
    output.say(f"Make a key for it: burnish keys create --project {project['name']}")


@commands.command("list")
def list_projects(context: typer.Context, limit: Limit = 20, after: After = None, json: Json = False) -> None:
    """List projects, newest first."""
    with connect(context) as service:
        print_page(service.get("/projects", limit=limit, after=after), COLUMNS, json)


@commands.command("show")
def show(context: typer.Context, project: Project, json: Json = False) -> None:
    """Show one project and its limits."""
    with connect(context) as service:
        found = service.get(f"/projects/{segment(project)}")
    (output.print_json if json else output.print_object)(found)


@commands.command("limits")
def change_limits(
    context: typer.Context,
    project: Project,
    requests_per_minute: limits.RequestsPerMinute = None,
    tokens_per_minute: limits.TokensPerMinute = None,
    storage_bytes: limits.StorageBytes = None,
    upload_bytes: limits.UploadBytes = None,
    running_jobs: limits.RunningJobs = None,
    queued_jobs: limits.QueuedJobs = None,
    json: Json = False,
) -> None:
    """Set a project's limits, and print them. `none` lifts a limit; what is not given stays."""
    wanted = limits.fields(
        requests_per_minute=requests_per_minute,
        tokens_per_minute=tokens_per_minute,
        storage_bytes=storage_bytes,
        upload_bytes=upload_bytes,
        running_jobs=running_jobs,
        queued_jobs=queued_jobs,
    )
    with connect(context) as service:
        limits.change(service, "/projects", project, wanted, json)


@commands.command("delete")
def delete(
    context: typer.Context,
    project: Project,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Delete a project with its datasets, jobs, fine-tunes, keys and secrets. Its running jobs are stopped."""
    if not yes:
        typer.confirm(f"Delete the project {project} and everything in it?", abort=True, err=True)
    with connect(context) as service:
        delete_object(service, "project", "/projects", project)
