"""What goes with what: stage, kind of rows, method, and how the outcome is served."""

from __future__ import annotations

from typing import Literal, NamedTuple

from app.jobs.hyperparameters import Hyperparameters, StageName, Supervised
from app.jobs.methods import Lora, Method, Mod, Qlora, Whole

Mode = Literal["adapter", "merged", "none"]


class StageRules(NamedTuple):
    """The kind of the rows that it trains on, and what it makes."""

    rows: str
    makes: Literal["language model", "reward model"] = "language model"


STAGES: dict[StageName, StageRules] = {
    "sft": StageRules("chat"),
    "pt": StageRules("text"),
    "dpo": StageRules("preference"),
    "kto": StageRules("labels"),
    "rm": StageRules("preference", makes="reward model"),
    "rl": StageRules("prompts"),
}


def trains_adapter(stage: StageName, method: Method) -> bool:
    """Whether an adapter that a job begins with is itself trained further; if not, it is first folded into its base."""
    return STAGES[stage].makes == "language model" and isinstance(method, Lora | Qlora)


# What Mixture-of-Depths goes with: stages that compare with nothing that the model was before it got routers, and the families
# (`model_type`) that it was shown to work on.
MOD_STAGES = ("sft", "pt")
MOD_FAMILIES = ("llama", "mistral", "qwen2", "qwen3")


# Stages and methods that train on one GPU, and why so. All others share a step's rows among several.
ON_ONE_GPU = {
    "rl": "a step's answers are drawn and compared in one process",
    "galore": "its projections are made of one process's gradients",
    "apollo": "its projections are drawn in one process",
}


# What can be sharded: methods that change all weights, and stages of which each text is passed through once.
SHARDED_STAGES, SHARDED_METHODS = ("sft", "pt"), ("full",)

# The families (`model_type`) of which it was shown that texts in a packed row say what they say alone, and that rewards are
# learned.
TRIED_FAMILIES = ("gemma2", "gemma3_text", "glm", "glm4", "llama", "mistral", "phi3", "qwen2", "qwen3")


def why_unpacked(settings: Hyperparameters, method: Method, family: str | None, own_code: bool) -> str | None:
    """Why texts are not packed on a model of this family; None where they may be."""
    if isinstance(method, Mod):
        return "Mixture-of-Depths picks a share of the tokens of each text, and takes a row for one."
    if isinstance(settings, Supervised) and settings.neftune_alpha is not None:
        return "NEFTune's noise is the weaker the longer a row is, so a packed one would get less."
    if family not in TRIED_FAMILIES or own_code:
        known = ", ".join(TRIED_FAMILIES)
        whose = "with code of its own" if own_code else f"of type '{family}'"
        return f"It was not shown to work on a model {whose}, but on these types without: {known}."
    return None


# Families (`model_type`) of which vLLM 0.32 loads no adapter on this module.
UNSERVED_ADAPTERS = {"glm4": "gate_up_proj"}


class Served(NamedTuple):
    """How an outcome is served unless something else is asked for, and why so; where there is no adapter to serve, what
    somebody is to do who asks for one."""

    mode: Mode
    reason: str
    instead_of_adapter: str | None = None


def served(stage: StageName, method: Method, family: str | None = None) -> Served:
    """How what this stage makes by this method of a model of this family is served."""
    if STAGES[stage].makes == "reward model":
        reason = "A reward model's scores come from its whole weights, which the embedded engine loads."
        return Served("merged", reason, "Leave deploy.mode out.")
    if isinstance(method, Mod):
        reason = "vLLM does not know Mixture-of-Depths: the embedded engine serves the outcome, as weights of its own."
        return Served("merged", reason, "Leave deploy.mode out, or use method.type 'lora'.")
    if not isinstance(method, Lora | Qlora):
        kind = "All weights" if isinstance(method, Whole) else "Whole layers"
        reason = f"{kind} are trained, so there is no adapter: the outcome is served as weights of its own."
        return Served("merged", reason, "Leave deploy.mode out, or use method.type 'lora'.")
    if method.variant == "dora":
        reason = "vLLM does not load DoRA's adapters: it is merged and served as weights of its own."
        return Served("merged", reason, "Leave deploy.mode out, or method.variant.")
    unserved = UNSERVED_ADAPTERS.get(family or "")
    if unserved and (method.target_modules == "all-linear" or unserved in method.target_modules):
        return Served("merged", f"vLLM loads no adapter on {unserved} of a model of type '{family}'.")
    if method.variant == "pissa":
        return Served("adapter", "It is converted to a plain adapter of twice its rank and loaded beside its base.")
    return Served("adapter", "The adapter is loaded beside its base.")


def why_so(stage: StageName, method: Method, mode: Mode) -> str:
    """The reason for the mode in which a job's outcome is served."""
    own = served(stage, method)
    if mode == own.mode:
        return own.reason
    return {
        "adapter": "It was asked for.",
        "merged": "The adapter is merged into its base and served as weights of its own: it was asked for, or vLLM loads none "
        "on these layers of such a model.",
        "none": "It was asked for: the outcome is stored, and loaded when it is first asked.",
    }[mode]
