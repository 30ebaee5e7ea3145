"""What can be wrong with rows: the codes, and what is said of one row."""

from __future__ import annotations

from typing import Literal, NamedTuple

from msgspec import Struct

Severity = Literal["error", "warning"]


class Code(NamedTuple):
    """How bad it is, and what to do."""

    severity: Severity
    hint: str


CODES: dict[str, Code] = {
    # The file, or a row of it, cannot be read.
    "unreadable_file": Code("error", "Send JSONL, a JSON array, CSV, TSV, Parquet or plain text, in UTF-8."),
    "too_large": Code("error", "Split the file."),
    "row_too_large": Code("error", "Split the row."),
    "invalid_utf8": Code("error", "Save the file as UTF-8."),
    "invalid_json": Code("error", "Write one JSON object a line, or a JSON array of objects."),
    "invalid_csv": Code(
        "error", "Quote fields that hold quotes, separators or line ends; give each record the header's fields."
    ),
    "unreadable_value": Code("error", "Write the column as text or numbers."),
    "too_deep": Code("error", "Flatten the row."),
    "not_an_object": Code("error", "Write each row as an object, {…}."),
    "no_rows": Code("error", "Send at least one row."),
    "unknown_format": Code("error", "Name it with 'format' and 'kind', or where its fields are with 'columns'."),
    # The row is not what its format says.
    "missing_field": Code("error", "Add it, or say with 'columns' where it is."),
    "wrong_type": Code("error", "Write a value of the expected type."),
    "wrong_value": Code("error", "Write one of the expected values."),
    "unknown_role": Code("error", "Use the format's roles, or say with 'tags' what they are called."),
    "unsupported_content": Code("error", "Send text only."),
    "invalid_tools": Code("error", "Write tools and the arguments of calls as JSON."),
    # The conversation cannot be trained on.
    "wrong_order": Code("error", "Put the turns in the order in which they were said."),
    "empty_turn": Code("error", "Fill it, or remove the row."),
    "no_assistant_turn": Code("error", "End the row with the answer to be learned."),
    "unanswered_tool_call": Code("error", "Let the tool's answer follow its call."),
    "chosen_equals_rejected": Code("error", "Remove the row: it prefers nothing."),
    "single_label": Code("error", "Add rows with the other label."),
    # The row can be trained on, and may not be what was meant.
    "consecutive_user_turns": Code("warning", "Some chat templates refuse it: POST /datasets/{id}/check says."),
    "repeated_row": Code("warning", "Remove it, unless it is meant to count twice."),
    "contradictory_answers": Code("warning", "The same prompt has another answer elsewhere: keep the right one."),
    "control_characters": Code("warning", "Remove them, unless the model is to write them."),
    "long_row": Code("warning", "POST /datasets/{id}/check says what max_length would cut."),
}


class Problem(Struct):
    """What is wrong with one row: `line` (None: the file), `path` in it, what was found and what is expected there."""

    line: int | None
    code: str
    severity: Severity
    path: str | None
    found: str | None
    expected: str | None
    message: str
    hint: str


def problem(
    line: int | None,
    code: str,
    message: str,
    path: str | None = None,
    found: str | None = None,
    expected: str | None = None,
    hint: str | None = None,
) -> Problem:
    """A problem of this code, whose severity and hint the table knows."""
    severity, usual = CODES[code]
    return Problem(line, code, severity, path, found, expected, message, hint or usual)
