"""What a job is asked to do: plain data that the API checks, the database stores and the trainer reads."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from app.kit.wire import Strict


class Lora(Strict):
    """Low-rank adapters (Hu et al., 2021): the update of a weight is `alpha / rank · B A`."""

    type: Literal["lora"] = Field("lora", description="The method.")
    rank: int = Field(8, ge=1, le=512, description="Rank of the update.")
    alpha: float = Field(0, gt=0, le=65536, validate_default=False, description="Default: twice the rank.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Share of an adapter's inputs that a step leaves out.")
    target_modules: Literal["all-linear"] | Annotated[list[str], Field(min_length=1, max_length=64)] = Field(
        "all-linear", description="Names of the modules that are adapted, or all linear layers but the output's."
    )

    @model_validator(mode="after")
    def _default_alpha(self) -> Lora:
        if "alpha" not in self.model_fields_set:
            self.alpha = 2.0 * self.rank
            self.model_fields_set.discard("alpha")  # what was asked for is told from what follows of it
        return self


class Hyperparameters(Strict):
    """How the optimiser runs. `batch_size` counts rows per optimiser step."""

    epochs: Annotated[float, Field(gt=0, le=1000)] | Literal["auto"] = Field(
        "auto", description="Passes over the rows. auto: three, fewer for many rows."
    )
    max_steps: int | None = Field(None, ge=1, le=10_000_000, description="Ends after so many steps, if before.")
    learning_rate: Annotated[float, Field(gt=0, le=1)] | Literal["auto"] = Field(
        "auto", description="The highest one. auto: by the model's hidden size."
    )
    batch_size: int = Field(16, ge=1, le=4096, description="Rows of an optimiser step.")
    max_length: int = Field(2048, ge=8, le=1_048_576, description="Tokens of a row; what is longer is cut.")
    warmup_ratio: float = Field(0.1, ge=0, le=1, description="Share of the steps over which the rate rises.")
    scheduler: Literal["cosine", "linear", "constant"] = Field("cosine", description="How the rate falls after that.")
    weight_decay: float = Field(0.0, ge=0, le=1, description="AdamW's.")
    checkpoint_every: Annotated[int, Field(ge=1, le=10_000_000)] | Literal["auto"] = Field(
        "auto", description="Steps between checkpoints, beside those of every epoch. auto: about two minutes."
    )
    keep_checkpoints: int = Field(2, ge=1, le=1000, description="So many of the newest are kept.")
    deterministic: bool = Field(False, description="On a GPU: only operations that give the same bits each time.")
    seed: int = Field(42, ge=0, le=2**32 - 1, description="Of the order of rows, first weights and dropout.")


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

    mode: Literal["adapter", "merged", "none"] = Field("adapter", description="How the outcome is served.")


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

    stage: Literal["sft"] = Field("sft", description="What is learned: `sft`, answers to chats.")
    method: Lora = Field(default_factory=Lora, description="Which weights change.")
    hyperparameters: Hyperparameters = Field(default_factory=Hyperparameters, description="How they are optimised.")
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


def auto_epochs(rows: int) -> float:
    """Passes over this many rows: three, and fewer where that would be more than 25,000 rows, but one at least.

    Source: the default that OpenAI's cookbook gives for its fine-tuning API ("Data preparation and analysis for chat model
    fine-tuning"). More passes over a large dataset learn it by heart; benchmarks/reviews.py shows the cost.
    """
    return float(max(1, min(3, 25_000 // rows)))


def auto_learning_rate(hidden_size: int) -> float:
    """Peak learning rate for LoRA on a model of this hidden size, rounded to three digits.

    Source: Schulman et al., "LoRA Without Regret", Thinking Machines Lab, 2025, and the rule in its cookbook: ten times the
    rate of full fine-tuning (5e-5), scaled by (2000 / hidden size) to the power that it fitted on Llama models, 0.781.
    """
    return float(f"{5e-4 * (2000 / hidden_size) ** 0.781:.3g}")
