"""The `burnish` command: a client of the HTTP API, and the service's own processes.

Client commands start fast: what is slow to import (httpx, rich, SQLAlchemy) is imported where it is used.
"""

from __future__ import annotations

import os
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from app.cli import (
    backup,
    chat,
    datasets,
    jobs,
    keys,
    models,
    processes,
    projects,
    records,
    secrets,
    webhooks,
    workers,
)
from app.cli.failure import Failure


class Commands(TyperGroup):
    """Commands whose failures are told in words, never as a traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except Failure as failure:
            from app.cli.output import show_failure

            show_failure(failure)
            raise typer.Exit(1) from None


def default_url() -> str:
    """The service on this machine. Read from the environment alone: the settings take longer to load than the command."""
    return f"http://127.0.0.1:{os.environ.get('BURNISH_PORT') or 8000}"


cli = typer.Typer(
    cls=Commands,
    help="Burnish: upload a dataset, start a fine-tune, watch it, and chat with the result.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"burnish {version('burnish')}")
        raise typer.Exit


@cli.callback()
def _service(
    context: typer.Context,
    url: Annotated[
        str,
        typer.Option(
            default_factory=default_url,
            envvar="BURNISH_URL",
            show_default=False,
            help="The service to talk to. Default: this machine's, at BURNISH_PORT.",
        ),
    ],
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    context.obj = url


for noun in (datasets, jobs, models):
    cli.add_typer(noun.commands, name=noun.__name__.rpartition(".")[2], rich_help_panel="Fine-tuning")
cli.command(rich_help_panel="Fine-tuning")(chat.chat)
for noun in (projects, keys, secrets, webhooks):
    cli.add_typer(noun.commands, name=noun.__name__.rpartition(".")[2], rich_help_panel="Administration")
for command in (records.usage, records.audit, workers.workers):
    cli.command(rich_help_panel="Administration")(command)
for name, process in processes.COMMANDS.items():
    cli.command(name, rich_help_panel="Service")(process)
for work in (backup.backup, backup.restore):
    cli.command(rich_help_panel="Service")(work)


def main() -> None:
    """The command's entry point."""
    cli(prog_name="burnish")
