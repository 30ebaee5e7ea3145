"""What a job is asked to do: plain data that the API checks, the database stores and the trainer reads."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, ValidatorFunctionWrapHandler, WrapValidator, model_validator

from app.jobs.hyperparameters import HYPERPARAMETERS, AnyHyperparameters, Hyperparameters, StageName
from app.jobs.methods import METHODS, Lora, Method
from app.kit.wire import Strict, by_type
from app.models.chat_templates import OwnArguments, OwnTemplate


def _of_stage(value: object, _: ValidatorFunctionWrapHandler, info: ValidationInfo) -> Hyperparameters:
    """`hyperparameters` by the `stage`, which is validated before it."""
    if "stage" not in info.data:  # it was refused: nobody can say what goes with it
        return Hyperparameters()
    return HYPERPARAMETERS[info.data["stage"]].model_validate(value)


AnyMethod = Annotated[Method, WrapValidator(by_type(METHODS, "lora"))]
OfStage = Annotated[AnyHyperparameters, WrapValidator(_of_stage)]


class Validation(Strict):
    """Held-out rows: a dataset of their own, or a share of the training rows chosen by the seed (None: the job's); when they are
    looked at, and what follows from it."""

    dataset: str | None = Field(None, max_length=200, description="Name or id of a dataset.")
    fraction: float | None = Field(
        None, gt=0, le=0.5, description="Share of the rows that is held out.", examples=[0.1]
    )
    seed: int | None = Field(None, ge=0, le=2**32 - 1, description="Of the choice of rows. Default: the job's.")
    every: Annotated[int, Field(ge=1, le=10_000_000)] | Literal["epoch"] = Field(
        "epoch", description="Steps between validations, or each epoch's end; the last step is validated too."
    )
    patience: int | None = Field(
        None, ge=1, le=1000, description="Training ends after so many validations in a row without a lower loss."
    )
    keep: Literal["last", "best"] = Field(
        "last",
        description="What the outcome is: the last step, or the one of the lowest loss. Default with patience: best.",
    )

    @model_validator(mode="after")
    def _one_of_both(self) -> Validation:
        if (self.dataset is None) == (self.fraction is None):
            raise ValueError("give either 'dataset' or 'fraction'")
        if self.seed is not None and self.fraction is None:
            raise ValueError("'seed' goes with 'fraction'")
        if self.patience is not None and "keep" not in self.model_fields_set:
            self.keep = "best"
        return self


class Replay(Strict):
    """General rows that are mixed in, so that what the model knew before is not forgotten."""

    dataset: str = Field(
        min_length=1, max_length=200, description="Name or id of a dataset.", examples=["ds_01k0000000000000000000000"]
    )
    fraction: float = Field(0.1, gt=0, le=0.9, description="Share of the rows trained on that comes from it.")


class Deploy(Strict):
    """How the result is served: beside its base, as merged weights of its own, or not at all."""

    mode: Literal["auto", "adapter", "merged", "none"] = Field(
        "auto", description="How the outcome is served. auto: as an adapter where the engines load it, else merged."
    )


class Check(Strict):
    """What the job's data must satisfy when it starts: which share of the rows may lose an answer's end-of-turn token; and
    whether its outcome is compared with what it began with."""

    max_cut_share: float = Field(0.2, ge=0, le=1, description="Most rows that may lose their end, as a share.")
    scorecard: bool = Field(True, description="Whether base and fine-tune are compared on the same rows.")


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
    chat_template: OwnTemplate = None
    template_arguments: OwnArguments = None
    validation: Validation | None = Field(None, description="Rows that are not trained on. Default: none.")
    replay: Replay | None = Field(None, description="Rows mixed in against forgetting. Default: none.")
    check: Check = Field(default_factory=Check, description="What the data must satisfy, and what is measured.")
    deploy: Deploy = Field(default_factory=Deploy, description="What becomes of the outcome.")


class RewardModel(Strict):
    """A reward model as the trainer loads it: its folder, chat template and its arguments, and whether its code is to run."""

    folder: str
    chat_template: str | None
    template_arguments: dict[str, Any] = Field(default_factory=dict)
    own_code: bool


class TrainerSpec(Strict):
    """The file that `python -m worker.trainer` reads: a resolved `JobSpec` and where things lie on this machine.

    `rows`, `validation_rows` and `replay_rows` are Parquet files of canonical rows; `threads` is 0 for all cores;
    `adapter` is the folder of an adapter on the base model that goes on being trained, `resume_from` that of a checkpoint;
    `own_code` says that the base model's code is to run; `gpus` are the ids of the only GPUs that it may use, as CUDA knows
    them, and null where it is nobody's to say; `processes` is how many share the work, each with one of the GPUs; on a CPU
    the micro-batch is `halved` as often as the kernel ended an attempt for want of memory.
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
    replay_rows: str | None = None
    threads: int = 0
    gpus: list[str] | None = None
    processes: int = 1
    halved: int = 0
    reward_models: dict[str, RewardModel] = Field(default_factory=dict, description="By id, those that rewards name.")
    provenance: dict[str, Any] = Field(default_factory=dict, description="Copied into the manifest: names and hashes.")


class Merge(Strict):
    """What `python -m worker.trainer.merging` is told: the folders of an adapter and of the base model that it is merged into,
    that of an adapter which is folded into this model first, whether this model's code is to run, what comes of it, with which
    chat template, and what ends its answers."""

    base_model: str
    adapter: str
    folded: str | None
    own_code: bool
    makes: Literal["language model", "reward model"]
    chat_template: str | None
    stop_token_ids: list[int]
