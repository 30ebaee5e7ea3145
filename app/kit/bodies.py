"""JSON as it must be sent: no key twice in an object, no `NaN`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, NoReturn

from app.kit.errors import BadRequest, InvalidValue, Refusals


def read_json(text: bytes | str) -> Any:
    """The value that the text holds. Raises `json.JSONDecodeError`, `BadRequest` for `NaN` and infinities, and `InvalidValue`
    (`duplicate_key`) with every key that an object has more than once."""
    repeated: dict[int, list[str]] = {}  # by the object's id(), which all keep until the end

    def make(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(pairs)
        if len(made) < len(pairs):
            names = [name for name, _ in pairs]
            repeated[id(made)] = [name for name in made if names.count(name) > 1]
        return made

    value = json.loads(text, object_pairs_hook=make, parse_constant=_refuse)
    if repeated:
        refusals = Refusals()
        for path in _paths(value, repeated, ""):
            refusals.add(duplicate(path, "field"))
        refusals.raise_all()
    return value


def duplicate(name: str, what: str) -> InvalidValue:
    """The error for a field or parameter that was sent more than once."""
    shown = name if len(name) <= 80 else name[:77] + "..."
    return InvalidValue(
        f"The {what} '{shown}' is given more than once.", param=shown, code="duplicate_key", hint="Send it once."
    )


def _refuse(name: str) -> NoReturn:
    raise BadRequest(f"The body is not JSON: it has the number {name}.", hint="Leave the field out, or send null.")


def _paths(value: Any, repeated: dict[int, list[str]], path: str) -> Iterator[str]:
    """Where in `value` the repeated keys are: `hyperparameters.seed`."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name in repeated.get(id(value), ()) if isinstance(value, dict) else ():
        yield f"{path}{name}"
    for key, child in pairs:
        yield from _paths(child, repeated, f"{path}{key}.")
