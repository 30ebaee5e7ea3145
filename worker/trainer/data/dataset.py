"""The rows of a run: read, split, and judged before anything is trained."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from app.jobs.combinations import STAGES
from app.jobs.hyperparameters import Hyperparameters, Reinforcement
from app.jobs.spec import TrainerSpec
from worker.trainer.data.render import ChatTemplateError, Example, Row, Template, plan, tokenize
from worker.trainer.data.rows import Item, Rows, draw, read_rows, split
from worker.trainer.events import Emit
from worker.trainer.failures import Failure

# Kind of rows → what a row must have to be trained on, and what else to look at.
_LEARNED = {"text": ("two tokens", ""), "prompts": ("prompt that leaves room for an answer", " and max_new_tokens")}


@dataclass(frozen=True, slots=True)
class Dataset:
    """Items to train and to validate on, and counts of the rows that they come from.

    `replay_rows` counts the rows that were mixed in among those to train on, of `replay_wanted`; `rows` are without them.
    `cut_ends_share`: of the rows of the training file, those in which an answer lost its end-of-turn token.
    """

    train: list[Item]
    validation: list[Item]
    rows: int
    validation_rows: int
    replay_rows: int
    replay_wanted: int
    cut: int
    cut_ends: int
    cut_ends_share: float
    tokens_lost: int
    dropped: int


def read(spec: TrainerSpec, tokenizer: Any) -> Dataset:
    """Reads and splits the rows that the spec names. Raises `Failure` where there is nothing to train on."""
    settings, held_out, kind = spec.spec.hyperparameters, spec.spec.validation, STAGES[spec.spec.stage].rows
    most = most_tokens(settings)
    files = [read_file(spec, tokenizer, spec.rows, "dataset")]
    if spec.validation_rows:
        files.append(read_file(spec, tokenizer, spec.validation_rows, "validation.dataset"))
    train_rows, validation_rows = files[0].items_by_row, files[1].items_by_row if len(files) > 1 else []
    if held_out is not None and held_out.fraction is not None:
        seed = settings.seed if held_out.seed is None else held_out.seed
        train_rows, validation_rows = split(train_rows, held_out.fraction, seed)
    if not train_rows:
        learned, hint = _LEARNED.get(kind, ("token of an assistant's answer", " and whether the rows end with one"))
        raise Failure(
            "no_trainable_rows",
            f"No row is left to train on: {files[0].dropped} rows have no {learned} within "
            f"{most} tokens, {len(validation_rows)} are held out for validation.",
            f"See hyperparameters.max_length{hint}.",
            "dataset",
        )
    if held_out is not None and not validation_rows:
        raise none_to_validate_on(files[-1], most)
    data = Dataset(
        train=[item for row in train_rows for item in row],
        validation=[item for row in validation_rows for item in row],
        rows=len(train_rows),
        validation_rows=len(validation_rows),
        replay_rows=0,
        replay_wanted=0,
        cut=sum(file.cut for file in files),
        cut_ends=sum(file.cut_ends for file in files),
        cut_ends_share=files[0].cut_ends / files[0].read,
        tokens_lost=sum(file.tokens_lost for file in files),
        dropped=sum(file.dropped for file in files),
    )
    if spec.spec.replay:
        data = _with_replay(data, spec, tokenizer)
    require_references(settings, [*data.train, *data.validation])
    return data


def most_tokens(settings: Hyperparameters) -> int:
    """How long a row may be; of `rl`, whose rows are prompts, without the answer."""
    return settings.prompt_length if isinstance(settings, Reinforcement) else settings.max_length


def read_file(spec: TrainerSpec, tokenizer: Any, path: str, param: str, only: set[int] | None = None) -> Rows:
    """Reads rows as the job trains on them, or `only` those of these numbers, from 0. Raises `Failure` where the chat template
    refuses one; `param` is the job's field that names the file."""
    kind, most = STAGES[spec.spec.stage].rows, most_tokens(spec.spec.hyperparameters)
    try:
        return read_rows(path, kind, tokenizer, most, spec.spec.template_arguments, only)
    except ChatTemplateError as error:
        of_replay = param == "replay.dataset"
        hint = "Give the job a chat_template that fits these rows, or change the rows."
        message = f"Of the rows of replay: {error}" if of_replay else str(error)
        hint = "Choose other rows for 'replay', or change them." if of_replay else hint
        raise Failure("template_refused", message, hint, param) from error


def _with_replay(data: Dataset, spec: TrainerSpec, tokenizer: Any) -> Dataset:
    """Adds so many of the replay rows that they are the job's share of all."""
    assert spec.spec.replay
    assert spec.replay_rows
    share, seed = spec.spec.replay.fraction, spec.spec.hyperparameters.seed
    wanted = max(1, round(data.rows * share / (1 - share)))
    drawn = draw(spec.replay_rows, wanted, seed)
    found = read_file(spec, tokenizer, spec.replay_rows, "replay.dataset", drawn)
    return replace(
        data,
        train=data.train + [item for row in found.items_by_row for item in row],
        replay_rows=len(found.items_by_row),
        replay_wanted=wanted,
        cut=data.cut + found.cut,
        cut_ends=data.cut_ends + found.cut_ends,
        tokens_lost=data.tokens_lost + found.tokens_lost,
        dropped=data.dropped + found.dropped,
    )


def require_references(settings: Hyperparameters, items: list[Item]) -> None:
    """Raises `Failure` where a reward compares answers with a reference that a prompt has not."""
    compares = settings.compares if isinstance(settings, Reinforcement) else []
    lacking = sum(item.row is not None and item.row["reference"] is None for item in items)
    if compares and lacking:
        raise Failure(
            "data_check_failed",
            f"{lacking} of {len(items)} prompts have no reference, with which the reward '{compares[0]}' compares answers.",
            "Give each row a 'reference', or use another hyperparameters.reward.",
            "hyperparameters.reward",
        )


def none_to_validate_on(rows: Rows, most: int) -> Failure:
    """The failure of a job whose rows for validation have nothing to learn within `most` tokens."""
    return Failure(
        "no_trainable_rows",
        f"No row is left to validate on: {rows.dropped} rows have nothing that is learned within {most} tokens.",
        "Raise hyperparameters.max_length, or give other rows in 'validation'.",
        "validation",
    )


def too_many_cut(
    share: float, cut: int, tokens_lost: int, max_length: int, max_cut_share: float, of: str = "the rows"
) -> Failure:
    """The failure of a job of which this share of the rows would lose an answer's end."""
    return Failure(
        "data_check_failed",
        f"{share:.1%} of {of} would lose an answer's end-of-turn token at max_length ({max_length} tokens), more than "
        f"check.max_cut_share ({max_cut_share:.1%}) allows: {cut} rows are longer and would lose {tokens_lost} tokens.",
        "Raise hyperparameters.max_length, shorten the rows, or set check.max_cut_share to 1.",
        "hyperparameters.max_length",
    )


def check(data: Dataset, max_length: int, max_cut_share: float) -> None:
    """Refuses to train on answers most of which (by the job's own measure) never end: the model would not learn to stop."""
    if data.cut_ends_share > max_cut_share:
        raise too_many_cut(data.cut_ends_share, data.cut, data.tokens_lost, max_length, max_cut_share)


def warn(data: Dataset, max_length: int, emit: Emit) -> None:
    """Tells of what was cut and dropped, and of replay rows that are fewer than were asked for."""
    if data.cut:
        emit(
            "warning",
            message=f"{data.cut} rows were longer than max_length ({max_length} tokens) and lost their end, "
            f"{data.tokens_lost} tokens in all; in {data.cut_ends} of them an answer lost its end-of-turn token.",
        )
    if data.replay_rows < data.replay_wanted:
        emit(
            "warning",
            message=f"{data.replay_rows} rows of replay are mixed in, all that could be had; its fraction would be "
            f"{data.replay_wanted} rows.",
        )
    if data.dropped:
        why = "they leave no room for an answer" if data.train[0].row else "no token that is learned was left in them"
        emit("warning", message=f"{data.dropped} rows were dropped: {why}.")


def stop_token_ids(
    items: list[Item], tokenizer: Any, arguments: dict[str, Any] | None, max_length: int, configured: Any, emit: Emit
) -> list[int]:
    """The special tokens that texts end with, which an engine must stop at; `configured` are those that the base model's
    engine stops at by itself (an id, several, or None). Warns where others are needed. What `max_length` may have cut ends
    with any token."""
    special = set(tokenizer.all_special_ids)
    special |= {token_id for token_id, token in tokenizer.added_tokens_decoder.items() if token.special}
    examples = [example for item in items for example in item.examples]
    examples = [each for each in examples if len(each.token_ids) < max_length or not each.loss_mask[-1]]
    if asked := items[0].row:
        examples = _answered(asked, Template(tokenizer, arguments))
    ends = {int(example.token_ids[example.loss_mask][-1]) for example in examples} & special
    known = {tokenizer.eos_token_id, *(configured if isinstance(configured, list) else [configured])}
    if foreign := ends - known:
        names = ", ".join(tokenizer.convert_ids_to_tokens(sorted(foreign)))
        emit("warning", message=f"The chat template ends turns with {names}, which the base model does not stop at.")
    return sorted(ends)


def _answered(asked: Row, template: Template) -> list[Example]:
    """Some answer to a prompt, which shows how the chat template ends one."""
    messages = [*asked["messages"], {"role": "assistant", "content": "Yes."}]
    plans = plan(template, messages, asked["tools"], len(asked["messages"]))
    return list(tokenize(template.tokenizer, plans))
