"""Models that bring code of their own (`auto_map`): it runs only where an admin allowed the model by its source.

Not by its name here: names are chosen by whoever registers a model.
"""

from __future__ import annotations

from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from app.kit.errors import InvalidValue
from app.models.tables import Model
from app.settings import get_settings

NEEDED_FOR = ("AutoConfig", "AutoModelForCausalLM", "AutoTokenizer")


def needs_own_code(config: dict[str, Any], tokenizer_config: dict[str, Any]) -> bool:
    """Whether a model with these files can be loaded with its own code only. Many repositories carry code that they do
    not need any more, because transformers knows the architecture."""
    maps = [each.get("auto_map") for each in (config, tokenizer_config)]
    named = {name for each in maps if isinstance(each, dict) for name in each}
    return bool(named.intersection(NEEDED_FOR)) and str(config.get("model_type", "")) not in _known_types()


def is_allowed(source: str) -> bool:
    """Whether an admin allowed what is read from this source to run its own code."""
    return source in [each.strip() for each in get_settings().allow_remote_code.split(",") if each.strip()]


def runs_own_code(model: Model) -> bool:
    """Whether whoever loads this model, or the one that it was made of, is to run its code."""
    return bool(model.facts.get("own_code")) and is_allowed(code_source(model))


def code_source(model: Model) -> str:
    """The source of the base model that a model was made of, in however many steps: its code is the one that runs."""
    return str(model.facts.get("code_source") or (model.base_model or model).source)


def require_allowed(source: str, shown: str) -> None:
    """Raises `InvalidValue` where the code of what is read from `source`, called `shown`, may not run."""
    if not is_allowed(source):
        raise InvalidValue(
            f"The source '{shown}' is a model that only its own code can load, and that is not allowed to run.",
            param="source",
            code="remote_code_refused",
            hint="Read that code; then an admin can name this very source in BURNISH_ALLOW_REMOTE_CODE.",
        )


@lru_cache
def _known_types() -> frozenset[str]:
    """The model types that the installed transformers has a folder for; found without loading it. None where it is not
    installed: then nothing can be loaded here, and what is unknown is refused."""
    package = find_spec("transformers")
    if package is None or package.origin is None:
        return frozenset()
    return frozenset(path.name for path in (Path(package.origin).parent / "models").iterdir() if path.is_dir())
