"""What the model is that a job's outcome becomes, or one of its checkpoints: the same is said of both."""

from __future__ import annotations

from typing import Any, Literal

from app.jobs.combinations import STAGES
from app.jobs.methods import Mod
from app.jobs.spec import JobSpec
from app.models.own_code import code_source
from app.models.tables import Model


def kind_of(spec: JobSpec, weights: Literal["adapter", "merged"]) -> str:
    """The model's kind, by what its weights are stored as."""
    return "reward" if STAGES[spec.stage].makes == "reward model" else weights


def facts_of(base: Model, spec: JobSpec, manifest: dict[str, Any], size: int) -> dict[str, Any]:
    """The model's facts: its base model's, and what the job told of it; `size` is what it stores, in bytes."""
    told: dict[str, Any] = {
        "stop_token_ids": manifest["stop_token_ids"],
        "template_arguments": spec.template_arguments or {},
        "stored_bytes": size,
    }
    if base.facts.get("own_code"):
        told["code_source"] = code_source(base)
    if isinstance(spec.method, Mod):
        told["mixture_of_depths"] = True
    facts = base.facts
    if facts.get("architecture_only"):
        told |= {
            "parameters": manifest["data"]["parameters"],
            "modules": manifest["modules"],
            "bytes": manifest["weight_bytes"],
        }
        facts = {name: value for name, value in facts.items() if name != "architecture_only"}
    return facts | told
