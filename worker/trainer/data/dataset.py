"""The rows of a run: read, split, and judged before anything is trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from app.jobs.combinations import STAGES
from app.jobs.spec import TrainerSpec
from worker.trainer.data.render import ChatTemplateError
from worker.trainer.data.rows import Item, read_rows, split
from worker.trainer.events import Emit
from worker.trainer.failures import Failure


@dataclass(frozen=True, slots=True)
class Dataset:
    """Items to train and to validate on, and counts of the rows that they come from.

    `cut_ends_share`: of the rows of the training file, those in which an answer lost its end-of-turn token.
    """

    train: list[Item]
    validation: list[Item]
    rows: int
    validation_rows: int
    cut: int
    cut_ends: int
    cut_ends_share: float
    tokens_lost: int
    dropped: int


def read(spec: TrainerSpec, tokenizer: Any) -> Dataset:
    """Reads and splits the rows that the spec names. Raises `Failure` where there is nothing to train on."""
    settings, held_out, kind = spec.spec.hyperparameters, spec.spec.validation, STAGES[spec.spec.stage].rows
    paths = [path for path in (spec.rows, spec.validation_rows) if path]
    try:
        files = [read_rows(path, kind, tokenizer, settings.max_length) for path in paths]
    except ChatTemplateError as error:
        hint = "Give the base model a chat_template that fits these rows, or change the rows."
        raise Failure("trainer_error", str(error), hint) from error
    train_rows, validation_rows = files[0].items_by_row, files[1].items_by_row if len(files) > 1 else []
    if held_out is not None and held_out.fraction is not None:
        seed = settings.seed if held_out.seed is None else held_out.seed
        train_rows, validation_rows = split(train_rows, held_out.fraction, seed)
    if not train_rows:
        learned = "two tokens" if kind == "text" else "token of an assistant's answer"
        raise Failure(
            "no_trainable_rows",
            f"No row is left to train on: {files[0].dropped} rows have no {learned} within "
            f"{settings.max_length} tokens, {len(validation_rows)} are held out for validation.",
            "Raise hyperparameters.max_length, or check that the rows end with an assistant's turn.",
        )
    return Dataset(
        train=[item for row in train_rows for item in row],
        validation=[item for row in validation_rows for item in row],
        rows=len(train_rows),
        validation_rows=len(validation_rows),
        cut=sum(file.cut for file in files),
        cut_ends=sum(file.cut_ends for file in files),
        cut_ends_share=files[0].cut_ends / files[0].read,
        tokens_lost=sum(file.tokens_lost for file in files),
        dropped=sum(file.dropped for file in files),
    )


def check(data: Dataset, max_length: int, max_cut_share: float) -> None:
    """Refuses to train on answers most of which (by the job's own measure) never end: the model would not learn to stop."""
    if data.cut_ends_share > max_cut_share:
        raise Failure(
            "data_check_failed",
            f"{data.cut_ends_share:.1%} of the rows would lose an answer's end-of-turn token at max_length ({max_length} "
            f"tokens), more than check.max_cut_share ({max_cut_share:.1%}) allows: {data.cut} rows are longer and would lose "
            f"{data.tokens_lost} tokens.",
            "Raise hyperparameters.max_length, shorten the rows, or set check.max_cut_share to 1.",
        )


def warn(data: Dataset, max_length: int, emit: Emit) -> None:
    """Tells of what was cut and dropped."""
    if data.cut:
        emit(
            "warning",
            message=f"{data.cut} rows were longer than max_length ({max_length} tokens) and lost their end, "
            f"{data.tokens_lost} tokens in all; in {data.cut_ends} of them an answer lost its end-of-turn token.",
        )
    if data.dropped:
        emit("warning", message=f"{data.dropped} rows were dropped: no token that is learned was left in them.")


def stop_token_ids(items: list[Item], tokenizer: Any, configured: Any, emit: Emit) -> list[int]:
    """The special tokens that texts end with, which an engine must stop at; `configured` are those that the base model's
    engine stops at by itself (an id, several, or None). Warns where others are needed."""
    special = set(tokenizer.all_special_ids)
    special |= {token_id for token_id, token in tokenizer.added_tokens_decoder.items() if token.special}
    examples = [example for item in items for example in item.examples]
    ends = {int(example.token_ids[example.loss_mask][-1]) for example in examples} & special
    known = {tokenizer.eos_token_id, *(configured if isinstance(configured, list) else [configured])}
    if foreign := ends - known:
        names = ", ".join(tokenizer.convert_ids_to_tokens(sorted(foreign)))
        emit("warning", message=f"The chat template ends turns with {names}, which the base model does not stop at.")
    return sorted(ends)
