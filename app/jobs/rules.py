"""What a job must satisfy when it is accepted, beyond the types of its fields: each rule raises with the field named.

A rule declares the fields that it reads. One that reads a field which was refused is skipped: what it would say follows from
that refusal, and what it reads may not even exist."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from app.datasets.tables import Dataset
from app.jobs.combinations import MOD_FAMILIES, MOD_STAGES, STAGES, TRIED_FAMILIES, served, trains_adapter, why_unpacked
from app.jobs.hyperparameters import Reinforcement, Texts, auto_epochs, auto_learning_rate
from app.jobs.methods import METHODS, Freeze, Lora, Mod, Qlora, Whole
from app.jobs.rewards import OF_REFERENCE, REWARDS
from app.jobs.spec import JobSpec
from app.kit.errors import InvalidValue, Refusals
from app.models.bases import read_manifest
from app.models.chat_templates import require_end, text_of
from app.models.tables import Model
from app.settings import get_settings


class Rule(NamedTuple):
    """A function that raises `InvalidValue`, and the fields that it reads, each with all that is in it."""

    check: Callable[..., None]
    reads: tuple[str, ...]


def apply(rules: Sequence[Rule], refusals: Refusals, *about: Any) -> None:
    """Collects what the rules refuse, in their order."""
    for rule in rules:
        if not any(refusals.concern(field) for field in rule.reads):
            with refusals.catch():
                rule.check(*about)


# What an adapter that is trained further need not share with the run before.
FREE = ("dropout", "plus")


def require_rows(spec: JobSpec, dataset: Dataset, param: str) -> None:
    """Raises `InvalidValue` where the stage does not train on rows of the dataset's kind."""
    wanted = STAGES[spec.stage].rows
    if dataset.kind != wanted:
        others = [f"'{name}'" for name, stage in STAGES.items() if stage.rows == dataset.kind]
        hint = f"Choose a dataset whose kind is '{wanted}'"
        raise InvalidValue(
            f"The dataset '{dataset.id}' holds {dataset.kind} rows; stage '{spec.stage}' trains on {wanted} rows.",
            param=param,
            hint=f"{hint}, or stage {' or '.join(others)}." if others else f"{hint}.",
        )


def _base_can_be_built_on(spec: JobSpec, base: Model, dataset: Dataset) -> None:
    if base.kind == "reward":
        raise InvalidValue(
            f"'{base.name}' is a reward model: it scores answers and writes none.",
            param="base_model",
            hint="Train on the model that it was made from.",
        )
    if base.facts.get("mixture_of_depths"):
        raise InvalidValue(
            f"'{base.name}' is a Mixture-of-Depths model, which cannot be trained further.",
            param="base_model",
            code="unsupported",
            hint="Train on the model that it was made from, on all rows.",
        )


def _weights_are_there(spec: JobSpec, base: Model, dataset: Dataset) -> None:
    if base.facts.get("architecture_only") and not spec.hyperparameters.begin_at_random:
        raise InvalidValue(
            f"'{base.name}' is an architecture without weights.",
            param="base_model",
            hint="Begin with random ones: stage 'pt', hyperparameters.initial_weights 'random' and method.type 'full'.",
        )


def _go_on(spec: JobSpec, base: Model, dataset: Dataset) -> None:
    """Makes the method that of the adapter which is trained further."""
    if base.kind != "adapter" or not trains_adapter(spec.stage, spec.method):
        return
    try:
        method = read_manifest(str(Path(str(base.location)).parent))["spec"]["method"]
    except FileNotFoundError:
        raise InvalidValue(
            f"The files of the fine-tune '{base.name}' are not there any more.",
            param="base_model",
            code="model_unreadable",
            hint="Train from its base model.",
        ) from None
    kept = METHODS[method["type"]].model_validate(method)
    assert isinstance(kept, Lora | Qlora)
    own = kept.saved()
    asked = spec.method
    assert isinstance(asked, Lora | Qlora)
    for name in sorted(asked.model_fields_set - set(FREE)):
        if getattr(asked, name) != getattr(own, name, None):
            raise InvalidValue(
                f"The adapter '{base.name}' has {name} {getattr(own, name, None)}; it cannot be trained further with "
                f"{getattr(asked, name)}.",
                param=f"method.{name}",
                hint=f"Leave method.{name} out, or merge the fine-tune (deploy.mode 'merged') and train on that.",
            )
    spec.method = own.model_copy(update={name: getattr(asked, name) for name in FREE if name in asked.model_fields_set})


def _has_template(spec: JobSpec, base: Model, dataset: Dataset) -> None:
    """Writes out the template that a name stands for, and what templates are handed."""
    renders = STAGES[spec.stage].rows != "text"
    refusals = Refusals()
    for param in ("chat_template", "template_arguments"):
        if not renders and getattr(spec, param) is not None:
            refusals.add(
                InvalidValue(
                    f"Stage '{spec.stage}' renders no conversations: nothing of a chat template would be learned.",
                    param=param,
                    hint=f"Leave {param} out, and give it to the job that trains on conversations.",
                )
            )
    refusals.raise_all()
    if spec.chat_template is not None:
        spec.chat_template = text_of(spec.chat_template)
        require_end(spec.chat_template, base.facts.get("templates"), base.name)
    elif renders and base.chat_template is None:
        raise InvalidValue(
            f"The base model '{base.name}' has no chat template, so {STAGES[spec.stage].rows} rows cannot be rendered for it.",
            param="base_model",
            hint="Give the job a 'chat_template': its text, or a name such as 'chatml'.",
        )
    if spec.template_arguments is None:
        spec.template_arguments = base.template_arguments


def _random_weights_are_all_trained(spec: JobSpec, base: Model, dataset: Dataset) -> None:
    if spec.hyperparameters.begin_at_random and not isinstance(spec.method, Whole):
        raise InvalidValue(
            f"From random weights all of them are learned, and method '{spec.method.type}' leaves most as they are.",
            param="method.type",
            hint="Use method.type 'full', 'galore', 'apollo' or 'mod'.",
        )


def _rewards_are_learned(spec: JobSpec, base: Model, dataset: Dataset) -> None:
    if STAGES[spec.stage].makes != "reward model":
        return
    family, own_code = base.facts.get("model_type"), base.facts.get("own_code")
    if family not in TRIED_FAMILIES or own_code:
        whose = "with code of its own" if own_code else f"of type '{family}'"
        raise InvalidValue(
            f"'{base.name}' is a model {whose}, on which rewards were not shown to be learned.",
            param="base_model",
            code="unsupported",
            hint=f"Train on a model of one of these types without code of its own: {', '.join(TRIED_FAMILIES)}.",
        )


def _rewards_on_whole_weights(spec: JobSpec, base: Model, dataset: Dataset) -> None:
    if STAGES[spec.stage].makes == "reward model" and isinstance(spec.method, Qlora):
        raise InvalidValue(
            "A reward model is served with its whole weights, on which an adapter that was trained on quantised ones scores "
            "otherwise.",
            param="method.type",
            code="unsupported",
            hint="Use 'lora', 'full', 'galore', 'apollo' or 'freeze'.",
        )


def _mod_is_known_to_work(spec: JobSpec, base: Model, dataset: Dataset) -> None:
    if not isinstance(spec.method, Mod):
        return
    family = base.facts.get("model_type")
    if family not in MOD_FAMILIES or base.facts.get("own_code"):
        raise InvalidValue(
            f"Mixture-of-Depths was not shown to work on a model like '{base.name}' ({family}).",
            param="method.type",
            code="unsupported",
            hint=f"Use another method, or a model of one of these types without code of its own: {', '.join(MOD_FAMILIES)}.",
        )
    if spec.stage not in MOD_STAGES:
        raise InvalidValue(
            f"Stage '{spec.stage}' learns from what the model says already, and with routers it says something else.",
            param="method.type",
            code="unsupported",
            hint=f"Use 'mod' with stage {' or '.join(MOD_STAGES)}, or another method.",
        )


def _packing_is_known_to_work(spec: JobSpec, base: Model, dataset: Dataset) -> None:
    settings, facts = spec.hyperparameters, base.facts
    if not isinstance(settings, Texts) or settings.packing is not True:
        return
    reason = why_unpacked(settings, spec.method, facts.get("model_type"), facts.get("own_code", False))
    if reason:
        raise InvalidValue(
            f"The rows of this job cannot be packed. {reason}",
            param="hyperparameters.packing",
            code="unsupported",
            hint="Leave hyperparameters.packing out.",
        )


def _is_served(spec: JobSpec, base: Model, dataset: Dataset) -> None:
    """Writes out how the outcome is served."""
    way = served(spec.stage, spec.method, base.facts.get("model_type"))
    if spec.deploy.mode == "auto":
        spec.deploy.mode = way.mode
    if spec.deploy.mode == "adapter" and way.instead_of_adapter:
        raise InvalidValue(
            f"The outcome cannot be deployed with mode 'adapter'. {way.reason}",
            param="deploy.mode",
            hint=way.instead_of_adapter,
        )


def _rank_is_served(spec: JobSpec, base: Model, dataset: Dataset) -> None:
    mode = spec.deploy.mode
    if mode == "none":  # it is loaded when it is first asked
        mode = served(spec.stage, spec.method, base.facts.get("model_type")).mode
    if not isinstance(spec.method, Lora | Qlora) or mode != "adapter":
        return
    cap, rank = get_settings().max_lora_rank, spec.method.saved().rank
    if rank > cap:
        made = "" if rank == spec.method.rank else f", from which an adapter of rank {rank} is made,"
        raise InvalidValue(
            f"The rank {spec.method.rank}{made} is above {cap}, the largest that the engines serve.",
            param="method.rank",
            hint=f"Use at most {cap * spec.method.rank // rank}, set BURNISH_MAX_LORA_RANK, or deploy with mode 'merged'.",
        )


def _references_are_there(spec: JobSpec, base: Model, dataset: Dataset) -> None:
    """Of the rows that are trained on, where they were counted: the trainer looks at those of `validation` and older ones."""
    if not isinstance(spec.hyperparameters, Reinforcement):
        return
    compares = spec.hyperparameters.compares
    others = [name for name in REWARDS if name not in OF_REFERENCE]
    there = dataset.statistics.get("references")
    if compares and there is not None and there < dataset.rows:
        raise InvalidValue(
            f"The reward '{compares[0]}' compares answers with each row's reference, and {dataset.rows - there} of the "
            f"{dataset.rows} rows of '{dataset.name}' have none.",
            param="hyperparameters.reward",
            hint=f"Give each row a 'reference', or use another reward: {', '.join(others)}.",
        )


def _targets_exist(spec: JobSpec, base: Model, dataset: Dataset) -> None:
    if not isinstance(spec.method, Lora | Qlora) or spec.method.target_modules == "all-linear":
        return
    known, refusals = base.facts.get("modules", []), Refusals()
    for index, name in enumerate(spec.method.target_modules):
        if name not in known:
            refusals.add(
                InvalidValue(
                    f"The base model '{base.name}' has no module '{name}'.",
                    param=f"method.target_modules.{index}",
                    hint=f"It has: {', '.join(known)}. Or leave it at 'all-linear'.",
                )
            )
    refusals.raise_all()


def _layers_are_there(spec: JobSpec, base: Model, dataset: Dataset) -> None:
    there = base.facts.get("layers")
    if isinstance(spec.method, Freeze) and there and spec.method.layers > there:
        raise InvalidValue(
            f"The last {spec.method.layers} layers are to be trained, and '{base.name}' has {there}.",
            param="method.layers",
            hint=f"Use at most {there}, or method.type 'full'.",
        )


def _fits_context(spec: JobSpec, base: Model, dataset: Dataset) -> None:
    context = base.facts.get("max_length")
    asked = "max_length" in spec.hyperparameters.model_fields_set
    if context and asked and spec.hyperparameters.max_length > context:
        raise InvalidValue(
            f"max_length {spec.hyperparameters.max_length} is above {context}, the context of '{base.name}'.",
            param="hyperparameters.max_length",
            hint=f"Use at most {context}.",
        )


def _rows_to_hold_out(spec: JobSpec, base: Model, dataset: Dataset) -> None:
    if spec.validation and spec.validation.fraction and dataset.rows < 2:
        raise InvalidValue(
            f"The dataset '{dataset.id}' has {dataset.rows} row; none can be held out of it.",
            param="validation.fraction",
            hint="Use a larger dataset, or give 'validation.dataset'.",
        )


def _defaults_are_written_out(spec: JobSpec, base: Model, dataset: Dataset) -> None:
    """Writes out what depends on the base model or the rows; of `rl` how long answers may be. Raises nothing."""
    settings, asked = spec.hyperparameters, frozenset(spec.hyperparameters.model_fields_set)
    if "max_length" not in asked and base.facts.get("max_length"):
        settings.max_length = min(settings.max_length, base.facts["max_length"])
    if settings.epochs == "auto":
        settings.epochs = auto_epochs(dataset.rows)
    if settings.learning_rate == "auto":
        settings.learning_rate = auto_learning_rate(base.facts["hidden_size"], spec.stage, spec.method.type)
    if isinstance(settings, Reinforcement) and "max_new_tokens" not in asked:
        settings.max_new_tokens = min(settings.max_new_tokens, settings.max_length // 2)
    if spec.validation and spec.validation.fraction and spec.validation.seed is None:
        spec.validation.seed = settings.seed


def _groups_are_whole(spec: JobSpec, base: Model, dataset: Dataset) -> None:
    """Writes out how many answers there are to a prompt."""
    settings = spec.hyperparameters
    if not isinstance(settings, Reinforcement):
        return
    sizes = [size for size in range(2, settings.group_size + 1) if settings.batch_size % size == 0]
    if not sizes:
        raise InvalidValue(
            f"A batch_size of {settings.batch_size} answers cannot be divided into groups of 2 to "
            f"{settings.group_size} (group_size): answers to the same prompt are compared.",
            param="hyperparameters.batch_size",
            hint="Use a multiple of hyperparameters.group_size.",
        )
    settings.group_size = max(sizes)


def _prompts_have_room(spec: JobSpec, base: Model, dataset: Dataset) -> None:
    settings = spec.hyperparameters
    if isinstance(settings, Reinforcement) and settings.prompt_length < 1:
        raise InvalidValue(
            f"max_new_tokens ({settings.max_new_tokens}) leaves no room for a prompt within max_length "
            f"({settings.max_length}).",
            param="hyperparameters.max_new_tokens",
            hint="max_length counts the prompt and its answer.",
        )


# In order: the first ones write out what the later ones judge. Whoever reads a base model or a dataset says so.
RULES: tuple[Rule, ...] = (
    Rule(_base_can_be_built_on, ("base_model",)),
    Rule(_weights_are_there, ("base_model", "hyperparameters.initial_weights")),
    Rule(_go_on, ("base_model", "stage", "method")),
    Rule(_has_template, ("base_model", "stage", "chat_template", "template_arguments")),
    Rule(_random_weights_are_all_trained, ("hyperparameters.initial_weights", "method")),
    Rule(_rewards_are_learned, ("base_model", "stage")),
    Rule(_rewards_on_whole_weights, ("stage", "method")),
    Rule(_mod_is_known_to_work, ("base_model", "stage", "method")),
    Rule(_packing_is_known_to_work, ("base_model", "method", "hyperparameters.packing")),
    Rule(_is_served, ("base_model", "stage", "method", "deploy")),
    Rule(_rank_is_served, ("base_model", "stage", "method", "deploy")),
    Rule(_targets_exist, ("base_model", "method")),
    Rule(_layers_are_there, ("base_model", "method")),
    Rule(_fits_context, ("base_model", "hyperparameters.max_length")),
    Rule(_rows_to_hold_out, ("dataset", "validation")),
    Rule(_references_are_there, ("dataset", "hyperparameters.reward")),
    Rule(_groups_are_whole, ("hyperparameters.batch_size", "hyperparameters.group_size")),
    Rule(_defaults_are_written_out, ("base_model", "dataset")),
    Rule(_prompts_have_room, ("base_model", "dataset", "hyperparameters.max_length", "hyperparameters.max_new_tokens")),
)
