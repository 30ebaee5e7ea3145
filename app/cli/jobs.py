"""`burnish jobs`: start, list, show, watch, and what can be said to a job."""

from __future__ import annotations

import codecs
from pathlib import Path
from typing import Annotated, Any

import typer

from app.cli import llamafactory, output, watching
from app.cli.client import connect, read_json_file, segment
from app.cli.deleting import delete_object
from app.cli.failure import Failure
from app.cli.listing import print_page
from app.cli.options import After, ChatTemplate, Json, Limit, TemplateArguments, template_fields
from app.cli.output import Column
from app.jobs import scorecards

COLUMNS = (
    Column("id", "id"),
    Column("status", "status"),
    Column("name", "name"),
    Column("base", "base_model"),
    Column("step", "progress.step"),
    Column("steps", "progress.total_steps"),
    Column("loss", "progress.loss", "{:.4f}".format),
    Column("created", "created_at"),
)
JobName = Annotated[str, typer.Argument(metavar="JOB", help="The job's name or id.")]
METRICS = ("step", "epoch", "loss", "validation_loss", "reward_accuracy", "learning_rate", "grad_norm", "tokens")
METRIC_COLUMNS = tuple(Column(name.replace("_", " "), name, "{:.6g}".format) for name in METRICS)
EVENT_COLUMNS = (
    Column("id", "id"),
    Column("when", "created_at"),
    Column("type", "type"),
    Column("message", "message"),
)

CHECKPOINT_COLUMNS = (
    Column("id", "id"),
    Column("attempt", "attempt"),
    Column("step", "step"),
    Column("validation loss", "validation_loss", "{:.6g}".format),
    Column("bytes", "bytes"),
    Column("created", "created_at"),
)

commands = typer.Typer(no_args_is_help=True, help="Start, list, watch, pause and cancel fine-tuning jobs.")


def _number(text: str | None) -> int | float | str | None:
    """What an option says: a number, or a word for the service to judge (`auto`, `epoch`)."""
    for kind in (int, float):
        try:
            return None if text is None else kind(text)
        except ValueError:
            continue
    return text


@commands.command("create", no_args_is_help=True)
def create(
    context: typer.Context,
    base: Annotated[str | None, typer.Argument(help="The name or id of a base model or fine-tune.")] = None,
    dataset: Annotated[str | None, typer.Argument(help="A dataset's name or id.")] = None,
    name: Annotated[str | None, typer.Option(help="The fine-tune's name. Default: made from the base's name.")] = None,
    stage: Annotated[
        str | None, typer.Option(metavar="sft|pt|dpo|kto|rm|rl", help="What is learned. Default: sft.")
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            metavar="lora|qlora|full|freeze|galore|apollo|mod", help="How weights are trained. Default: lora."
        ),
    ] = None,
    rank: Annotated[
        int | None, typer.Option(help="Rank of the adapter, or of the projections of galore and apollo.")
    ] = None,
    variant: Annotated[str | None, typer.Option(metavar="rslora|dora|pissa", help="For lora: a variant of it.")] = None,
    layers: Annotated[int | None, typer.Option(help="For freeze: how many of the last layers are trained.")] = None,
    reward: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TYPE|MODEL", help="For rl: exact_match, …, or a reward model's name. Repeat it to add rewards."
        ),
    ] = None,
    epochs: Annotated[float | None, typer.Option(help="Passes over the rows.")] = None,
    max_steps: Annotated[int | None, typer.Option(help="Stop after this many steps, if --epochs would go on.")] = None,
    learning_rate: Annotated[
        str | None, typer.Option(metavar="NUMBER|auto", help="Peak learning rate. Default: auto.")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Rows per optimizer step. Default: 16.")] = None,
    max_length: Annotated[int | None, typer.Option(help="Longest row, in tokens. Longer rows are cut.")] = None,
    chat_template: ChatTemplate = None,
    template_arguments: TemplateArguments = None,
    validation: Annotated[
        str | None, typer.Option(metavar="DATASET", help="A dataset of held-out rows: its name or id.")
    ] = None,
    validation_fraction: Annotated[
        float | None, typer.Option(help="Share of the rows to hold out, such as 0.1.")
    ] = None,
    validate_every: Annotated[
        str | None, typer.Option(metavar="STEPS|epoch", help="When to validate. Default: after each epoch.")
    ] = None,
    patience: Annotated[
        int | None, typer.Option(help="Stop after this many validations in a row without a lower loss.")
    ] = None,
    keep: Annotated[
        str | None,
        typer.Option(
            metavar="last|best",
            help="Keep the weights of the last or the best step. Default: last, with --patience best.",
        ),
    ] = None,
    replay: Annotated[
        str | None,
        typer.Option(metavar="DATASET", help="A dataset of general rows, mixed in against forgetting: its name or id."),
    ] = None,
    replay_fraction: Annotated[
        float | None, typer.Option(help="Share of the training rows that comes from --replay. Default: 0.1.")
    ] = None,
    scorecard: Annotated[
        bool | None, typer.Option(help="Compare the fine-tune with its base on the same rows. Default: yes.")
    ] = None,
    deploy: Annotated[
        str | None, typer.Option(metavar="adapter|merged|none|auto", help="How the result is served. Default: auto.")
    ] = None,
    priority: Annotated[int | None, typer.Option(help="Jobs of higher priority go first. Default: 0.")] = None,
    gpus: Annotated[
        str | None, typer.Option(metavar="NUMBER|auto", help="How many GPUs it gets. Default: auto.")
    ] = None,
    memory_gb: Annotated[
        float | None, typer.Option(help="Least memory of each of its GPUs, or without GPUs of the machine, in GiB.")
    ] = None,
    max_seconds: Annotated[int | None, typer.Option(help="Fail the job when it has run this long.")] = None,
    seed: Annotated[
        int | None, typer.Option(help="Seed of order, first weights, dropout and split. Default: 42.")
    ] = None,
    spec: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="A JSON file with a body of POST /jobs. Options override it."),
    ] = None,
    watch: Annotated[
        bool | None,
        typer.Option("--watch/--no-watch", help="Watch the job until it ends. Default: yes, except with --json."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print memory, tokens, steps and time that it would take. Start nothing.")
    ] = False,
    json: Json = False,
) -> None:
    """Start a fine-tune. A base model and a dataset are enough: everything else has a default."""
    body = read_json_file(str(spec), "--spec") if spec else {}
    options = {
        "base_model": base,
        "dataset": dataset,
        "name": name,
        "stage": stage,
        "method.type": method,
        "method.rank": rank,
        "method.variant": variant,
        "method.layers": layers,
        "hyperparameters.epochs": epochs,
        "hyperparameters.max_steps": max_steps,
        "hyperparameters.learning_rate": _number(learning_rate),
        "hyperparameters.batch_size": batch_size,
        "hyperparameters.max_length": max_length,
        "hyperparameters.seed": seed,
        "hyperparameters.reward": reward or None,
        "validation.dataset": validation,
        "validation.fraction": validation_fraction,
        "validation.every": _number(validate_every),
        "validation.patience": patience,
        "validation.keep": keep,
        "replay.dataset": replay,
        "replay.fraction": replay_fraction,
        "check.scorecard": scorecard,
        "deploy.mode": deploy,
        "priority": priority,
        "resources.gpus": _number(gpus),
        "resources.memory_gb": memory_gb,
        "max_seconds": max_seconds,
    }
    for path, value in options.items():
        if value is not None:
            _put(body, path, value)
    body |= template_fields(chat_template, template_arguments)
    with connect(context) as service:
        if dry_run:
            (output.print_json if json else output.print_object)(service.post("/jobs?dry_run=true", body))
            return
        job = service.post("/jobs", body)
        if watch is None:
            watch = not json
        if not watch:
            _print_created(job, json)
            return
        output.say(f"{job['id']} makes '{job['name']}' from {job['base_model']}.")
        job = watching.watch(service, job["id"], output.stderr() if json else output.stdout())
        if json:
            output.print_json(job)
        watching.conclude(job)


def _put(body: dict[str, Any], path: str, value: Any) -> None:
    """Sets `a.b` in a body, where an option is given."""
    *parents, last = path.split(".")
    for parent in parents:
        body = body.setdefault(parent, {})
        if not isinstance(body, dict):
            raise Failure(f"'{parent}' in the --spec file is not an object.", param=parent)
    body[last] = value


def _print_created(job: dict[str, Any], json: bool) -> None:
    if json:
        output.print_json(job)
        return
    output.print_table(COLUMNS, [job])
    output.say(f"Watch it: burnish jobs watch {job['id']}")


@commands.command("from-llamafactory", no_args_is_help=True)
def from_llamafactory(
    context: typer.Context,
    config: Annotated[Path, typer.Argument(help="A YAML file of LLaMA-Factory.")],
    base: Annotated[str | None, typer.Option("--base-model", help="Default: the one registered from there.")] = None,
    dataset: Annotated[
        str | None, typer.Option(help="A dataset's name or id. Default: the name that the file has.")
    ] = None,
    reward_model: Annotated[
        str | None, typer.Option(metavar="NAME", help="For stage ppo, which becomes rl: the reward model.")
    ] = None,
    show: Annotated[bool, typer.Option("--show", help="Print the job's body. Start nothing.")] = False,
    json: Json = False,
) -> None:
    """Start the job of a LLaMA-Factory configuration, or say which of its keys cannot be translated."""
    given = llamafactory.read(config)
    body = llamafactory.body_of(given, reward_model)
    with connect(context) as service:
        body |= llamafactory.named(service, given, base, dataset)
        if show:
            output.print_json(body)
            return
        _print_created(service.post("/jobs", body), json)


@commands.command("list")
def list_jobs(
    context: typer.Context,
    status: Annotated[
        str | None, typer.Option(metavar="queued|running|paused|succeeded|failed|cancelled", help="Only these.")
    ] = None,
    limit: Limit = 20,
    after: After = None,
    json: Json = False,
) -> None:
    """List jobs, newest first."""
    with connect(context) as service:
        print_page(service.get("/jobs", status=status, limit=limit, after=after), COLUMNS, json)


@commands.command("show")
def show(context: typer.Context, job: JobName, json: Json = False) -> None:
    """Show one job, with every default written out."""
    with connect(context) as service:
        found = service.get(f"/jobs/{segment(job)}")
    if json:
        output.print_json(found)
        return
    if found["scorecard"]:
        found["scorecard"] = scorecards.lines(found["scorecard"])
    output.print_object(found)


@commands.command("watch")
def watch_job(context: typer.Context, job: JobName) -> None:
    """Watch a job until it ends. Exit code: 0 succeeded, 1 failed, 2 cancelled. Ctrl-C leaves the job running."""
    with connect(context) as service:
        watching.conclude(watching.watch(service, job, output.stdout()))


@commands.command("events")
def events(
    context: typer.Context,
    job: JobName,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Follow until the job ends.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print each event as a line of JSON.")] = False,
) -> None:
    """Print what happened to a job, oldest first."""
    with connect(context) as service, watching.leaving_it_running(job):
        found = (
            watching.follow(service, job, "events") if follow else service.pages(f"/jobs/{segment(job)}/events", "id")
        )
        if not follow and not json:
            output.print_table(EVENT_COLUMNS, found)
            return
        for event in found:
            watching.print_event(event, json)


@commands.command("logs")
def logs(
    context: typer.Context,
    job: JobName,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Follow until the job ends.")] = False,
) -> None:
    """Print the log of a job's trainers: warnings and tracebacks."""
    with connect(context) as service, watching.leaving_it_running(job):
        if follow:
            for entry in watching.follow(service, job, "logs"):
                print(output.clean(entry["text"]), end="", flush=True)
            return
        decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        with service.download(f"/jobs/{segment(job)}/logs", accept="text/plain") as pieces:
            for piece in pieces:
                print(output.clean(decode(piece)), end="")


@commands.command("metrics")
def metrics(context: typer.Context, job: JobName, json: Json = False) -> None:
    """Print the measurements of each optimizer step."""
    with connect(context) as service:
        rows = list(service.pages(f"/jobs/{segment(job)}/metrics", "step"))
    if json:
        output.print_json({"object": "list", "data": rows, "has_more": False})
    else:
        output.print_table(METRIC_COLUMNS, rows)


@commands.command("checkpoints")
def checkpoints(context: typer.Context, job: JobName, json: Json = False) -> None:
    """List a job's checkpoints, newest first. Make one a model: burnish models add NAME checkpoint://ID."""
    with connect(context) as service:
        print_page(service.get(f"/jobs/{segment(job)}/checkpoints"), CHECKPOINT_COLUMNS, json)


def _verb(name: str, help: str) -> None:
    """Adds a command that changes a job's state, and prints the state that it is in then."""

    @commands.command(name, help=help)
    def say(context: typer.Context, job: JobName, json: Json = False) -> None:
        with connect(context) as service:
            found = service.post(f"/jobs/{segment(job)}/{name}")
        if json:
            output.print_json(found)
        else:
            output.say(f"{found['name']} ({found['id']}): {_standing(found)}")


def _standing(job: dict[str, Any]) -> str:
    if job["status"] == "running" and job["cancel_requested"]:
        return "asked to stop. It ends within a step."
    if job["pause_requested"]:
        return "asked to pause. It pauses after this step."
    return f"{job['status']}."


_verb("cancel", "Cancel a job. A running one stops within a step.")
_verb("pause", "Pause a job. A running one stops after its step, with a checkpoint.")
_verb("resume", "Resume a paused job at the step where it paused.")
_verb("retry", "Retry a failed job from its last checkpoint.")


@commands.command("delete")
def delete(context: typer.Context, job: JobName) -> None:
    """Delete a job that has ended. Its model stays."""
    with connect(context) as service:
        delete_object(service, "job", "/jobs", job)
