"""How the optimiser runs, and what each stage has beside that: a class per stage."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from app.jobs.rewards import OF_REFERENCE, ExactMatch, Reward, Rewards
from app.kit.wire import Strict

StageName = Literal["sft", "pt", "dpo", "kto", "rm", "rl"]
Precision = Literal["auto", "bf16", "fp16", "fp32"]


class Hyperparameters(Strict):
    """What every stage has."""

    epochs: Annotated[float, Field(gt=0, le=1000)] | Literal["auto"] = Field(
        "auto", description="Passes over the rows. auto: three, fewer for many rows."
    )
    max_steps: int | None = Field(None, ge=1, le=10_000_000, description="Ends after so many steps, if before.")
    learning_rate: Annotated[float, Field(gt=0, le=1)] | Literal["auto"] = Field(
        "auto", description="The highest one. auto: by the model's hidden size, the stage and the method."
    )
    batch_size: int = Field(16, ge=1, le=4096, description="Rows of an optimiser step; of `rl`, answers.")
    max_length: int = Field(2048, ge=8, le=1_048_576, description="Tokens of a row; what is longer is cut.")
    warmup_ratio: float = Field(0.1, ge=0, le=1, description="Share of the steps over which the rate rises.")
    scheduler: Literal["cosine", "linear", "constant"] = Field("cosine", description="How the rate falls after that.")
    weight_decay: float = Field(0.0, ge=0, le=1, description="AdamW's.")
    max_grad_norm: float = Field(
        1.0, gt=0, le=1_000_000, description="Gradients longer than this are scaled down to it."
    )
    precision: Precision = Field(
        "auto",
        description="What is computed in. auto: bf16 where the machine is quick in it, else fp32. fp16: GPUs only.",
    )
    gradient_checkpointing: bool = Field(
        False,
        description="Less memory for about a third more time: activations are computed again when they are needed.",
    )
    sharding: Literal["none", "full"] = Field(
        "none", description="full: several GPUs share out weights, gradients and optimiser state; each has a part."
    )
    checkpoint_every: Annotated[int, Field(ge=1, le=10_000_000)] | Literal["auto"] = Field(
        "auto", description="Steps between checkpoints, beside those of every epoch. auto: about two minutes."
    )
    keep_checkpoints: int = Field(2, ge=1, le=1000, description="So many of the newest are kept.")
    deterministic: bool = Field(False, description="On a GPU: only operations that give the same bits each time.")
    seed: int = Field(
        42, ge=0, le=2**32 - 1, description="Of the order of rows, first weights, dropout and what `rl` draws."
    )

    @property
    def rows_per_step(self) -> int:
        """Rows of an optimiser step."""
        return self.batch_size

    @property
    def begin_at_random(self) -> bool:
        """Whether the first weights are random ones, and the base model's are not read."""
        return False


class Texts(Hyperparameters):
    """Of stages whose rows are texts that are learned one by one."""

    packing: bool | Literal["auto"] = Field(
        "auto",
        description="Whether several texts are laid one after the other into a row, in place of padding. auto: where "
        "attention is `varlen` (a GPU's FlashAttention), on models that it was shown to work on.",
    )


class Supervised(Texts):
    """Of `sft`."""

    neftune_alpha: float | None = Field(
        None, gt=0, le=1000, description="NEFTune: noise on the embeddings, of this strength. Default: none."
    )


class Pretraining(Texts):
    """Of `pt`."""

    initial_weights: Literal["base", "random"] = Field(
        "base", description="random: only the architecture and the tokenizer of the base model are used."
    )

    @property
    def begin_at_random(self) -> bool:
        return self.initial_weights == "random"


class Preference(Hyperparameters):
    """Of `dpo`."""

    loss: Literal["sigmoid", "hinge", "ipo", "orpo", "simpo"] = Field("sigmoid", description="What is minimised.")
    beta: float = Field(0.1, gt=0, le=1000, description="How much the preferences count against staying as it was.")
    simpo_gamma: float = Field(0.5, ge=0, le=1000, description="Of simpo: the margin that is aimed at.")


class Kto(Hyperparameters):
    """Of `kto`."""

    beta: float = Field(0.1, gt=0, le=1000, description="How much the labels count against staying as it was.")
    desirable_weight: float = Field(1.0, gt=0, le=1000, description="Weight of the answers that are good.")
    undesirable_weight: float = Field(1.0, gt=0, le=1000, description="Weight of the answers that are bad.")


class Reinforcement(Hyperparameters):
    """Of `rl`. `batch_size` counts answers, `group_size` of them to each prompt."""

    algorithm: Literal["grpo", "rloo"] = Field("grpo", description="How rewards become what is learned.")
    reward: Rewards = Field(
        default_factory=lambda: list[Reward]([ExactMatch(type="exact_match")]),
        description="What answers are rewarded for, the sum of all.",
    )
    group_size: int = Field(
        8, ge=2, le=1024, description="Answers to each prompt; lowered to what batch_size can be divided by."
    )
    max_new_tokens: int = Field(256, ge=1, le=1_048_576, description="Tokens of an answer at most.")
    temperature: float = Field(1.0, ge=0.01, le=10, description="At which answers are drawn.")
    beta: float = Field(0.0, ge=0, le=1000, description="How much staying as it was counts against the rewards.")

    @property
    def rows_per_step(self) -> int:
        """Prompts of an optimiser step."""
        return self.batch_size // self.group_size

    @property
    def prompt_length(self) -> int:
        """Tokens that a prompt may have."""
        return self.max_length - self.max_new_tokens

    @property
    def compares(self) -> list[str]:
        """Those of the rewards that compare answers with a row's reference, by their types."""
        return [each.type for each in self.reward if each.type in OF_REFERENCE]


# Of `rm`: what every stage has.
AnyHyperparameters = Supervised | Pretraining | Preference | Kto | Reinforcement | Hyperparameters
HYPERPARAMETERS: dict[StageName, type[Hyperparameters]] = {
    "sft": Supervised, "pt": Pretraining, "dpo": Preference, "kto": Kto, "rm": Hyperparameters, "rl": Reinforcement
}  # fmt: skip


def auto_epochs(rows: int) -> float:
    """Passes over this many rows: three, and fewer where that would be more than 25,000 rows, but one at least.

    Source: the default that OpenAI's cookbook gives for its fine-tuning API ("Data preparation and analysis for chat model
    fine-tuning"). More passes over a large dataset learn it by heart; benchmarks/reviews.py shows the cost.
    """
    return float(max(1, min(3, 25_000 // rows)))


# Against supervised LoRA. A tenth for all weights: Schulman et al., as below. A tenth where the model is to stay near to what
# it was: the defaults of TRL and of LLaMA-Factory's examples are a tenth to a twentieth of those for `sft`.
_OF_METHOD = {"full": 0.1, "freeze": 0.1, "galore": 0.1, "apollo": 0.1, "mod": 0.1}
_OF_STAGE = {"dpo": 0.1, "kto": 0.1, "rl": 0.1}


def auto_learning_rate(hidden_size: int, stage: str, method: str) -> float:
    """Peak learning rate on a model of this hidden size, rounded to three digits.

    Source: Schulman et al., "LoRA Without Regret", Thinking Machines Lab, 2025, and the rule in its cookbook: for LoRA ten
    times the rate of full fine-tuning (5e-5), scaled by (2000 / hidden size) to the power that it fitted on Llama models,
    0.781.
    """
    factor = _OF_METHOD.get(method, 1.0) * _OF_STAGE.get(stage, 1.0)
    return float(f"{5e-4 * factor * (2000 / hidden_size) ** 0.781:.3g}")
