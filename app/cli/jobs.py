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
    Column("of", "progress.total_steps"),
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
    name: Annotated[str | None, typer.Option(help="What the fine-tune is called.")] = None,
    stage: Annotated[str | None, typer.Option(metavar="sft|pt|dpo|kto|rm|rl", help="What is learned.")] = None,
    method: Annotated[
        str | None, typer.Option(metavar="lora|qlora|full|freeze|galore|apollo|mod", help="Which weights change.")
    ] = None,
    rank: Annotated[
        int | None, typer.Option(help="Rank of the adapter, or of galore's and apollo's projections.")
    ] = None,
    variant: Annotated[str | None, typer.Option(metavar="rslora|dora|pissa", help="Of lora.")] = None,
    layers: Annotated[int | None, typer.Option(help="Of freeze: so many of the last layers are trained.")] = None,
    reward: Annotated[
        list[str] | None,
        typer.Option(metavar="TYPE|MODEL", help="Of rl: exact_match, …, or a reward model's name; several times."),
    ] = None,
    epochs: Annotated[float | None, typer.Option(help="Passes over the rows.")] = None,
    max_steps: Annotated[int | None, typer.Option(help="End earlier than --epochs would.")] = None,
    learning_rate: Annotated[str | None, typer.Option(metavar="NUMBER|auto", help="Peak learning rate.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Rows per optimiser step.")] = None,
    max_length: Annotated[int | None, typer.Option(help="Tokens; longer rows are cut.")] = None,
    chat_template: ChatTemplate = None,
    template_arguments: TemplateArguments = None,
    validation: Annotated[
        str | None, typer.Option(metavar="DATASET", help="A dataset of held-out rows: its name or id.")
    ] = None,
    validation_fraction: Annotated[float | None, typer.Option(help="Share of the rows that is held out.")] = None,
    validate_every: Annotated[
        str | None, typer.Option(metavar="STEPS|epoch", help="When they are looked at. Default: at each epoch's end.")
    ] = None,
    patience: Annotated[
        int | None, typer.Option(help="End after so many validations in a row without a lower loss.")
    ] = None,
    keep: Annotated[
        str | None,
        typer.Option(metavar="last|best", help="Which step's weights are the outcome. With --patience: best."),
    ] = None,
    replay: Annotated[
        str | None,
        typer.Option(metavar="DATASET", help="A dataset of general rows, mixed in against forgetting: its name or id."),
    ] = None,
    replay_fraction: Annotated[
        float | None, typer.Option(help="Share of the rows trained on that comes from it. Default: 0.1.")
    ] = None,
    scorecard: Annotated[
        bool | None, typer.Option(help="Compare base and fine-tune on the same rows. Default: yes.")
    ] = None,
    deploy: Annotated[
        str | None, typer.Option(metavar="adapter|merged|none|auto", help="How the result is served.")
    ] = None,
    priority: Annotated[int | None, typer.Option(help="The highest goes first. Default: 0.")] = None,
    gpus: Annotated[str | None, typer.Option(metavar="NUMBER|auto", help="GPUs of its own.")] = None,
    memory_gb: Annotated[
        float | None, typer.Option(help="GiB that each of its GPUs has at least; without a GPU, that the machine has.")
    ] = None,
    max_seconds: Annotated[int | None, typer.Option(help="Running longer fails it.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of order, initial adapter, dropout and split.")] = None,
    spec: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="A whole body of POST /jobs; options go over it.")
    ] = None,
    watch: Annotated[
        bool | None,
        typer.Option("--watch/--no-watch", help="Show the job until it has ended. Default: yes, but not with --json."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what it would take, and start nothing.")] = False,
    json: Json = False,
) -> None:
    """Start a fine-tune. `burnish jobs create BASE DATASET` is enough: everything else has a default."""
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
        str | None, typer.Option(metavar="NAME", help="Of stage ppo, which becomes rl: what rewards answers.")
    ] = None,
    show: Annotated[bool, typer.Option("--show", help="Print the body of the job, and start none.")] = False,
    json: Json = False,
) -> None:
    """Start the job that a LLaMA-Factory configuration describes, or say which of its keys have no counterpart."""
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
    """Show a job until it has ended. Exit code: 0 succeeded, 1 failed, 2 cancelled. Ctrl-C leaves the job running."""
    with connect(context) as service:
        watching.conclude(watching.watch(service, job, output.stdout()))


@commands.command("events")
def events(
    context: typer.Context,
    job: JobName,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job has ended.")] = False,
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
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job has ended.")] = False,
) -> None:
    """Print what a job's trainers wrote: libraries' warnings, tracebacks."""
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
    """Print what each optimiser step measured."""
    with connect(context) as service:
        rows = list(service.pages(f"/jobs/{segment(job)}/metrics", "step"))
    if json:
        output.print_json({"object": "list", "data": rows, "has_more": False})
    else:
        output.print_table(METRIC_COLUMNS, rows)


@commands.command("checkpoints")
def checkpoints(context: typer.Context, job: JobName, json: Json = False) -> None:
    """List a job's checkpoints, newest first. `burnish models add NAME checkpoint://ID` makes one a model."""
    with connect(context) as service:
        print_page(service.get(f"/jobs/{segment(job)}/checkpoints"), CHECKPOINT_COLUMNS, json)


def _verb(name: str, help: str) -> None:
    """Adds a command that says one word to a job and shows the state that it is in then."""

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


_verb("cancel", "Cancel a job: at once when it is queued, within a step when it runs.")
_verb("pause", "Pause a job: at once when it is queued, after its step when it runs.")
_verb("resume", "Go on with a paused job, from the step that it paused at.")
_verb("retry", "Try a failed job again, from its last checkpoint.")


@commands.command("delete")
def delete(context: typer.Context, job: JobName) -> None:
    """Delete a job that has ended; its model stays."""
    with connect(context) as service:
        delete_object(service, "job", "/jobs", job)
