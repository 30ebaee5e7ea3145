"""What a job is asked to do: plain data that the API checks, the database stores and the trainer reads."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)
from pydantic_core import InitErrorDetails

from app.jobs.hyperparameters import HYPERPARAMETERS, AnyHyperparameters, Hyperparameters, StageName
from app.jobs.methods import METHODS, Lora, Method
from app.kit.wire import Strict


def _of_type(value: object, _: ValidatorFunctionWrapHandler) -> Method:
    """`method` by its `type`, which need not be given for LoRA. As a union's, its errors would name every type."""
    if isinstance(value, Method):
        return value
    type = value.get("type", "lora") if isinstance(value, dict) else "lora"
    if not isinstance(type, str) or type not in METHODS:
        known = " or ".join(f"'{name}'" for name in METHODS)
        wrong = InitErrorDetails(type="literal_error", loc=("type",), input=type, ctx={"expected": known})
        raise ValidationError.from_exception_data("method", [wrong])
    return METHODS[type].model_validate(value)


def _of_stage(value: object, _: ValidatorFunctionWrapHandler, info: ValidationInfo) -> Hyperparameters:
    """`hyperparameters` by the `stage`, which is validated before it."""
    own = HYPERPARAMETERS[info.data.get("stage", "sft")]
    return own.model_validate(value)


AnyMethod = Annotated[Method, WrapValidator(_of_type)]
OfStage = Annotated[AnyHyperparameters, WrapValidator(_of_stage)]


class Validation(Strict):
    """Held-out rows: a dataset of their own, or a share of the training rows chosen by the seed (None: the job's)."""

    dataset: str | None = Field(None, description="Id of a dataset.")
    fraction: float | None = Field(
        None, gt=0, le=0.5, description="Share of the rows that is held out.", examples=[0.1]
    )
    seed: int | None = Field(None, ge=0, le=2**32 - 1, description="Of the choice of rows. Default: the job's.")

    @model_validator(mode="after")
    def _one_of_both(self) -> Validation:
        if (self.dataset is None) == (self.fraction is None):
            raise ValueError("give either 'dataset' or 'fraction'")
        if self.seed is not None and self.fraction is None:
            raise ValueError("'seed' goes with 'fraction'")
        return self


class Deploy(Strict):
    """How the result is served: beside its base, as merged weights of its own, or not at all."""

    mode: Literal["auto", "adapter", "merged", "none"] = Field(
        "auto", description="How the outcome is served. auto: as an adapter where the engines load it, else merged."
    )


class Check(Strict):
    """What the job's data must satisfy when it starts: which share of the rows may lose an answer's end-of-turn token."""

    max_cut_share: float = Field(0.2, ge=0, le=1, description="Most rows that may lose their end, as a share.")


class Resources(Strict):
    """What a job needs of a worker."""

    gpus: Annotated[int, Field(ge=0, le=64)] | Literal["auto"] = Field(
        "auto", description="GPUs of its own. auto: one, or none on a worker that has none."
    )
    memory_gb: float | None = Field(
        None, gt=0, le=65536, description="GiB that each of its GPUs has at least; without a GPU, that the machine has."
    )


class JobSpec(Strict):
    """Everything that decides the result, beside base model and rows. Stored with every default written out."""

    stage: StageName = Field("sft", description="What is learned.")
    method: AnyMethod = Field(default_factory=Lora, description="Which weights change.")
    hyperparameters: OfStage = Field(
        default_factory=lambda given: HYPERPARAMETERS[given.get("stage", "sft")](),
        description="How they are optimised; each stage has its own.",
    )
    validation: Validation | None = Field(None, description="Rows that are not trained on. Default: none.")
    check: Check = Field(default_factory=Check, description="What the data must satisfy.")
    deploy: Deploy = Field(default_factory=Deploy, description="What becomes of the outcome.")


class TrainerSpec(Strict):
    """The file that `python -m worker.trainer` reads: a resolved `JobSpec` and where things lie on this machine.

    `rows` and `validation_rows` are Parquet files of canonical rows; `threads` is 0 for all cores;
    `adapter` is the folder of an adapter on the base model that goes on being trained, `resume_from` that of a checkpoint;
    `own_code` says that the base model's code is to run; `gpus` are the ids of the only GPUs that it may use, as CUDA knows
    them, and null where it is nobody's to say.
    """

    job: str
    attempt: int
    spec: JobSpec
    base_model: str
    chat_template: str | None
    own_code: bool = False
    adapter: str | None = None
    resume_from: str | None = None
    rows: str
    validation_rows: str | None = None
    threads: int = 0
    gpus: list[str] | None = None
    provenance: dict[str, Any] = Field(default_factory=dict, description="Copied into the manifest: names and hashes.")
