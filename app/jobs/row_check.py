"""Whether a job's rows would fail the check that its trainer makes of them: found out before the job is accepted."""

from __future__ import annotations

import json
import logging
from functools import lru_cache
from typing import Any, NamedTuple

from app.datasets import rendering, service
from app.datasets.checking import renderer_model
from app.datasets.tables import Dataset
from app.jobs.spec import Check, JobSpec, TrainerSpec
from app.kit import storage
from app.kit.errors import InvalidValue, NotFound, Unavailable
from app.models.bases import foundation
from app.models.tables import Model

log = logging.getLogger(__name__)

# What is rendered in about a second: all rows of a dataset that has no more, else a sample.
ROWS = 2000
CHARACTERS = 4_000_000
# A job is not kept waiting for larger files to be converted or fetched. Its dry run is.
AT_HAND_BYTES = 64 * 2**20

# What decides whether rows can be trained on. Jobs that differ in nothing else are judged once.
_DECISIVE = ("max_length", "seed", "reward", "max_new_tokens")


class Refusal(NamedTuple):
    """What the trainer would fail the job with."""

    code: str
    message: str
    hint: str
    param: str | None


def require_trainable(spec: JobSpec, base: Model, datasets: dict[str, Dataset], *, patient: bool) -> str | None:
    """Has the renderer look at the rows of a resolved job; `datasets` by the names that `TrainerSpec` has for their files. Blocks,
    so no transaction may be open.

    Returns None if they were looked at, else why not: nothing that can be helped by changing the job. Where `patient`, large files
    are waited for. Raises `InvalidValue` with the sentence that the trainer would fail the job with.
    """
    large = [each.name for each in datasets.values() if each.file.bytes > AT_HAND_BYTES and not _is_here(each)]
    if large and not patient:
        return f"The rows of '{large[0]}' are not at hand yet."
    if not patient and base.kind != "base" and not storage.is_here(str(foundation(base).location)):
        return f"The files of '{base.name}' are not at hand yet."
    sizes = {name: _size(each) for name, each in datasets.items() if name != "replay_rows"}
    if spec.stage == "pt" and any(sizes.values()):
        return None  # all of a text is learned, however it is cut: a sample proves nothing
    try:
        model = renderer_model(base, spec.chat_template or base.chat_template)
        paths: dict[str, Any] = {name: str(service.rows_path(each)) for name, each in datasets.items()}
        asked = TrainerSpec(job="", attempt=0, spec=_decisive(spec), **model, **paths)
        request = {"do": "judge", **model, "spec": asked.model_dump(mode="json"), "sizes": sizes}
        refusal = _judged(json.dumps(request), base.id)
    except NotFound:
        return None  # a dataset was deleted meanwhile, which the job's second look at it says
    except (OSError, Unavailable) as error:
        if patient:
            raise
        log.warning("the rows of a job were not checked: %s", error)
        return str(error) if isinstance(error, Unavailable) else "The service's disk cannot be read or written."
    if refusal is not None:
        raise InvalidValue(refusal.message, param=refusal.param, code=refusal.code, hint=refusal.hint)
    return None


def _is_here(dataset: Dataset) -> bool:
    return dataset.rows_sha256 is not None and storage.has_blob_here(dataset.rows_sha256)


def _size(dataset: Dataset) -> int | None:
    """How many rows are looked at; None: all."""
    characters = dataset.statistics.get("characters", 0)
    fitting = min(ROWS, max(20, CHARACTERS * dataset.rows // max(characters, 1)))
    return None if dataset.rows <= fitting else fitting


def _decisive(spec: JobSpec) -> JobSpec:
    """The spec without what changes nothing for its rows."""
    settings = type(spec.hyperparameters)
    kept = {name: getattr(spec.hyperparameters, name) for name in _DECISIVE if name in settings.model_fields}
    return JobSpec(
        stage=spec.stage,
        hyperparameters=settings(**kept),
        template_arguments=spec.template_arguments,
        validation=spec.validation,
        replay=spec.replay,
        check=Check(max_cut_share=spec.check.max_cut_share),
    )


@lru_cache(maxsize=256)
def _judged(request: str, base_id: str) -> Refusal | None:
    """What the renderer answers. Rows never change, and neither do a registered model's files. Raises `Unavailable`."""
    answer: dict[str, Any] = rendering.ask(json.loads(request))
    if "error" not in answer:
        return None
    error = answer["error"]
    if error["code"] == "fault":
        raise Unavailable(f"The renderer failed: {error['message']}", code="renderer_unavailable")
    return Refusal(error["code"], error["message"], error["hint"], error["param"] or "base_model")
