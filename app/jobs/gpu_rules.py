"""What a job must satisfy to use the GPUs that it asks for."""

from __future__ import annotations

from typing import Literal

from app.jobs.combinations import ON_ONE_GPU, SHARDED_METHODS, SHARDED_STAGES
from app.jobs.rules import Rule
from app.jobs.spec import JobSpec
from app.kit.errors import InvalidValue

Gpus = int | Literal["auto"]


def _is_known_to_shard(spec: JobSpec, gpus: Gpus) -> None:
    shards = spec.stage in SHARDED_STAGES and spec.method.type in SHARDED_METHODS
    if spec.hyperparameters.sharding != "none" and not shards:
        raise InvalidValue(
            f"Stage '{spec.stage}' by method '{spec.method.type}' cannot be sharded.",
            param="hyperparameters.sharding",
            code="unsupported",
            hint=f"Leave it out, or use method.type {' or '.join(SHARDED_METHODS)} with stage {' or '.join(SHARDED_STAGES)}.",
        )


def _shards_among_several(spec: JobSpec, gpus: Gpus) -> None:
    if spec.hyperparameters.sharding != "none" and gpus in ("auto", 0, 1):
        raise InvalidValue(
            "A job is sharded among several GPUs, and this one has no more than one.",
            param="hyperparameters.sharding",
            hint="Give it resources.gpus, or leave sharding out.",
        )


def _parts_scale_alike(spec: JobSpec, gpus: Gpus) -> None:
    if spec.hyperparameters.sharding != "none" and spec.hyperparameters.precision == "fp16":
        raise InvalidValue(
            "A job that is sharded does not compute in fp16: each GPU would scale its gradients by itself.",
            param="hyperparameters.precision",
            code="unsupported",
            hint="Use 'bf16', 'fp32' or 'auto'.",
        )


def _fp16_has_a_gpu(spec: JobSpec, gpus: Gpus) -> None:
    if gpus == 0 and spec.hyperparameters.precision == "fp16":
        raise InvalidValue(
            "fp16 is computed on GPUs only, and this job is to have none (resources.gpus 0).",
            param="hyperparameters.precision",
            code="unsupported",
            hint="Use 'bf16', 'fp32' or 'auto', or resources.gpus 1.",
        )


def _goes_on_several(spec: JobSpec, gpus: Gpus) -> None:
    if gpus == "auto" or gpus <= 1:
        return
    for what, name in (("Stage", spec.stage), ("Method", spec.method.type)):
        if name in ON_ONE_GPU:
            raise InvalidValue(
                f"{what} '{name}' cannot have {gpus} GPUs: {ON_ONE_GPU[name]}.",
                param="resources.gpus",
                code="unsupported",
                hint="Use 1, 0 for none, or leave it at 'auto'.",
            )


def _each_has_a_row(spec: JobSpec, gpus: Gpus) -> None:
    rows = spec.hyperparameters.rows_per_step
    if gpus != "auto" and gpus > 1 and rows < gpus:
        raise InvalidValue(
            f"A step of {rows} {'row' if rows == 1 else 'rows'} leaves some of {gpus} GPUs without any.",
            param="resources.gpus",
            hint=f"Use at most {rows}, or a larger hyperparameters.batch_size.",
        )


GPU_RULES: tuple[Rule, ...] = (
    Rule(_is_known_to_shard, ("hyperparameters.sharding", "stage", "method")),
    Rule(_shards_among_several, ("hyperparameters.sharding", "resources.gpus")),
    Rule(_parts_scale_alike, ("hyperparameters.sharding", "hyperparameters.precision")),
    Rule(_fp16_has_a_gpu, ("hyperparameters.precision", "resources.gpus")),
    Rule(_goes_on_several, ("resources.gpus", "stage", "method")),
    Rule(_each_has_a_row, ("resources.gpus", "hyperparameters.batch_size")),
)
