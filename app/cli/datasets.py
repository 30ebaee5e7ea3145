"""`burnish datasets`: upload and import, list, look into, check, delete."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import typer

from app.cli import output
from app.cli.client import connect, segment
from app.cli.deleting import delete_object
from app.cli.failure import Failure
from app.cli.listing import print_page
from app.cli.options import After, Json, Limit
from app.cli.output import Column

COLUMNS = (
    Column("id", "id"),
    Column("name", "name"),
    Column("format", "format"),
    Column("rows", "rows"),
    Column("size", "bytes"),
    Column("created", "created_at"),
)
OUTCOME_COLUMNS = (
    Column("name", "name"),
    Column("became", "status"),
    Column("dataset", "dataset"),
    Column("rows", "rows"),
    Column("report", "report"),
    Column("because", "reason"),
)
PROBLEM_COLUMNS = (
    Column("line", "line"),
    Column("severity", "severity"),
    Column("code", "code"),
    Column("count", "count"),
    Column("path", "path"),
    Column("problem", "message"),
    Column("hint", "hint"),
)

OnBadRows = Annotated[
    str | None,
    typer.Option(metavar="reject|drop", help="Reject a file with bad rows, or drop these rows. Default: reject."),
]
Dataset = Annotated[str, typer.Argument(metavar="DATASET", help="The dataset's name or id.")]
BaseModel = Annotated[str, typer.Argument(help="The base model's name or id.")]
MaxLength = Annotated[int | None, typer.Option(help="Longest row, in tokens. Longer rows are cut.")]

commands = typer.Typer(no_args_is_help=True, help="Upload, import, check and delete datasets.")


@commands.command("add")
def add(
    context: typer.Context,
    file: Annotated[
        Path,
        typer.Argument(
            exists=True,
            dir_okay=False,
            readable=True,
            help="JSON, JSONL, CSV, TSV, Parquet or text, also as .gz or .zst.",
        ),
    ],
    name: Annotated[str | None, typer.Option(help="A label. Default: the file's name.")] = None,
    format: Annotated[
        str | None,
        typer.Option(metavar="auto|alpaca|sharegpt|openai|trl|text", help="How rows are read. Default: auto."),
    ] = None,
    kind: Annotated[
        str | None,
        typer.Option(metavar="auto|chat|preference|labels|text|prompts", help="What rows are for. Default: auto."),
    ] = None,
    columns: Annotated[
        str | None,
        typer.Option(metavar="JSON", help='Where the fields are: {"prompt": "question", "response": "answer"}.'),
    ] = None,
    tags: Annotated[
        str | None,
        typer.Option(metavar="JSON", help='ShareGPT\'s keys and roles: {"role_tag": "role", "user_tag": "user"}.'),
    ] = None,
    on_bad_rows: OnBadRows = None,
    json: Json = False,
) -> None:
    """Upload a file. Every row is checked."""
    from app.cli.uploading import upload

    fields = {"format": format, "kind": kind, "columns": columns, "tags": tags, "on_bad_rows": on_bad_rows}
    with connect(context) as service:
        dataset, new = upload(service, file, name=name or file.name, **fields)
    if json:
        output.print_json(dataset)
        return
    output.print_table(COLUMNS, [dataset])
    if not new:
        output.say(f"This file was uploaded before with the same options, as {dataset['name']}. Nothing was added.")
    _say_problems(dataset)
    output.say(f"Train on it: burnish jobs create demo-base {dataset['id']}")


def _say_problems(dataset: dict[str, Any]) -> None:
    """What reading the rows found, although the dataset is there."""
    if dropped := dataset.get("dropped_rows"):
        output.say(f"{dropped:,} rows cannot be trained on. They were dropped.")
    for problem in dataset.get("problems") or []:
        output.say(f"{problem['severity'].capitalize()}, line {problem['line']}: {output.problem_shown(problem)}")
    if dataset.get("problems"):
        output.say(f"Report: {output.report_command(dataset['report'])}")


@commands.command("import")
def import_registry(
    context: typer.Context,
    folder: Annotated[
        Path, typer.Argument(exists=True, file_okay=False, help="A folder with LLaMA-Factory's dataset_info.json.")
    ],
    only: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Import only this entry. Repeat it to add others.")
    ] = None,
    hubs: Annotated[
        bool, typer.Option("--hubs", help="Also fetch entries from model hubs. Entries named with --only always are.")
    ] = False,
    hub: Annotated[
        str, typer.Option(metavar="modelscope|hf", help="The hub to use if an entry names both.")
    ] = "modelscope",
    keep: Annotated[
        Path | None, typer.Option(file_okay=False, help="Keep the files fetched from hubs in this folder.")
    ] = None,
    on_bad_rows: OnBadRows = None,
    json: Json = False,
) -> None:
    """Upload the datasets that LLaMA-Factory's dataset_info.json names.

    Exit code 1 if one was refused or failed. Entries that cannot be translated are skipped, with the reason.
    """
    from app.cli import dataset_info, importing

    if hub not in dataset_info.HUBS.values():
        raise Failure(f"'{hub}' is no hub.", hint="It is modelscope or hf.", param="--hub")
    entries = dataset_info.read(folder)
    if missing := [name for name in only or [] if name not in entries]:
        raise Failure(f"{dataset_info.FILE} has no entry '{missing[0]}'.", param="--only")
    wanted = {name: value for name, value in entries.items() if not only or name in only}
    source = importing.Source(folder, hubs or bool(only), hub, keep)
    outcomes = []
    with connect(context) as service:
        service.get("/health")  # nothing is fetched for a service that does not answer
        for outcome in importing.import_entries(service, wanted, source, on_bad_rows):
            outcomes.append(outcome)
            if outcome["status"] != "skipped":
                output.say(f"{outcome['name']}: {outcome['status']}")
    if json:
        output.print_json(outcomes)
    else:
        output.print_table(OUTCOME_COLUMNS, outcomes)
    counts = Counter(outcome["status"] for outcome in outcomes)
    output.say(", ".join(f"{count} {status}" for status, count in counts.items()) or "There are no entries.")
    if any(counts[status] for status in importing.BAD):
        raise typer.Exit(1)


@commands.command("list")
def list_datasets(context: typer.Context, limit: Limit = 20, after: After = None, json: Json = False) -> None:
    """List datasets, newest first."""
    with connect(context) as service:
        print_page(service.get("/datasets", limit=limit, after=after), COLUMNS, json)


@commands.command("show")
def show(context: typer.Context, dataset: Dataset, json: Json = False) -> None:
    """Show one dataset."""
    with connect(context) as service:
        found = service.get(f"/datasets/{segment(dataset)}")
    (output.print_json if json else output.print_object)(found)


@commands.command("rows")
def rows(
    context: typer.Context,
    dataset: Dataset,
    limit: Limit = 20,
    after: Annotated[int | None, typer.Option(metavar="ROW", help="Go on after this row.")] = None,
    json: Json = False,
) -> None:
    """Show rows as training reads them."""
    from app.cli.rows import print_rows

    with connect(context) as service:
        page = service.get(f"/datasets/{segment(dataset)}/rows", limit=limit, after=after)
    if json:
        output.print_json(page)
        return
    print_rows(page["data"])
    if page["has_more"]:
        output.say(f"There are more: --after {page['data'][-1]['row']}, or a larger --limit.")


@commands.command("preview")
def preview(
    context: typer.Context,
    dataset: Dataset,
    base_model: BaseModel,
    row: Annotated[int, typer.Option(help="Which row, counted from 0.")] = 0,
    max_length: MaxLength = None,
    json: Json = False,
) -> None:
    """Show a row as a model sees it, and which of its tokens are learned."""
    from app.cli.rows import print_preview

    body = _given(base_model=base_model, row=row, max_length=max_length)
    with connect(context) as service:
        seen = service.post(f"/datasets/{segment(dataset)}/preview", body)
    (output.print_json if json else print_preview)(seen)


@commands.command("check")
def check(
    context: typer.Context,
    dataset: Dataset,
    base_model: BaseModel,
    max_length: MaxLength = None,
    validation: Annotated[
        str | None, typer.Option(metavar="DATASET", help="Another dataset: count the rows that are in both.")
    ] = None,
    json: Json = False,
) -> None:
    """Count the rows as training would see them: tokens, cut rows, rows that the chat template refuses, rows in both sets."""
    from app.cli.rows import print_check

    body = _given(base_model=base_model, max_length=max_length, validation=validation)
    with connect(context) as service:
        counted = service.post(f"/datasets/{segment(dataset)}/check", body, seconds=None)
    (output.print_json if json else print_check)(counted)


@commands.command("report")
def show_report(
    context: typer.Context,
    report: Annotated[
        str, typer.Argument(metavar="REPORT|DATASET", help="A report's id, or the name or id of a dataset.")
    ],
    rows: Annotated[bool, typer.Option("--rows", help="Print every problem, one line of JSON each.")] = False,
    repaired: Annotated[
        Path | None,
        typer.Option(dir_okay=False, help="Write the file here as JSONL, with those rows repaired that can be."),
    ] = None,
    json: Json = False,
) -> None:
    """Show the problems that the check of an upload found."""
    with connect(context) as service:
        id = report if report.startswith("rep_") else service.get(f"/datasets/{segment(report)}")["report"]
        path = f"/reports/{segment(id)}"
        if repaired is not None:
            with service.download(f"{path}/repaired") as pieces, repaired.open("wb") as file:
                file.writelines(pieces)
            output.say(f"Wrote {repaired}.")
            return
        if rows:
            with service.download(f"{path}/rows") as pieces:
                for piece in pieces:
                    typer.echo(piece, nl=False)
            return
        found = service.get(path)
    if json:
        output.print_json(found)
        return
    if found["problems"] or not output.stdout().is_terminal:
        output.print_table(PROBLEM_COLUMNS, found["problems"])
    output.say(
        f"{found['rows']:,} rows, {found['bad_rows']:,} bad, {found['repairable_rows']:,} of them can be repaired."
    )
    if not found["complete"]:
        output.say("The check stopped at so many bad rows. There may be more.")
    if found["repairable_rows"]:
        output.say(f"Repair them: {output.report_command(id)} --repaired FILE")


def _given(**fields: Any) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


@commands.command("delete")
def delete(context: typer.Context, dataset: Dataset) -> None:
    """Delete a dataset that no unfinished job uses."""
    with connect(context) as service:
        delete_object(service, "dataset", "/datasets", dataset)
