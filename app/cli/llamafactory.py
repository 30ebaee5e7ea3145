"""A LLaMA-Factory training configuration → the body of the same job."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from app.cli.client import Service, segment
from app.cli.failure import Failure
from app.cli.llamafactory_keys import (
    CHOICES,
    DEFAULTS,
    LOW_RANK,
    NEUTRAL,
    OF_METHOD,
    OF_STAGE,
    PRECISIONS,
    READ,
    SAME,
    SCHEDULERS,
    SETTLED,
    TEMPLATES,
    Config,
)

# The most that a job may have: so that `max_steps` alone decides where it ends.
MOST_EPOCHS = 1000


def named(service: Service, config: Config, base: str | None, dataset: str | None) -> Config:
    """The fields of the body that name a model and datasets: those given, else the model that is registered from where the
    configuration has it, and datasets of the names that it says. Raises `Failure` where the service has none."""
    body = Config({
        "base_model": base or _base_model(service, config),
        "dataset": dataset or _dataset(service, config, "dataset"),
    })  # fmt: skip
    if config.get("eval_dataset") is not None:
        body["validation"] = {"dataset": _dataset(service, config, "eval_dataset")} | _judging(config)
    if config.get("stage", "sft") != "pt":
        body |= _template(service, config, body["base_model"])
    _check_max_steps(service, config, body["dataset"])
    return body


def _check_max_steps(service: Service, config: Config, dataset: str) -> None:
    """Raises `Failure` where the rows are so few that the job would end before. Not of `pt`, where a long text is several rows, nor
    of `ppo`, whose steps are not those of `rl`."""
    given = DEFAULTS | _stated(config)
    steps, share = int(given.get("max_steps", -1)), float(given.get("val_size", 0))
    if steps <= MOST_EPOCHS or given["stage"] in ("pt", "ppo"):  # an epoch has a step at least
        return
    rows = int(service.get(f"/datasets/{segment(dataset)}")["rows"])
    trained = rows - (max(1, round(share * rows)) if share else 0)
    most = MOST_EPOCHS * math.ceil(trained / _batch_size(given))
    if steps > most:
        raise Failure(
            f"max_steps {steps} has no counterpart: a job has {MOST_EPOCHS} epochs at most, {most} steps of {trained} rows.",
            param="max_steps",
            hint=f"Set it to {most} or less in a copy of the file.",
        )


def _template(service: Service, config: Config, base: str) -> Config:
    """A model's own chat template is the one that it was made with; one that has none gets our template of that name."""
    found = (
        {}
        if config.get("enable_thinking") is None
        else {"template_arguments": {"enable_thinking": config["enable_thinking"]}}
    )
    name = config.get("template")
    # GLM-4's own writes no end of turn after the last answer, so nothing would be learned of stopping.
    if name is None or (name != "glm4" and service.get(f"/models/{segment(base)}")["has_chat_template"]):
        return found
    if name not in TEMPLATES:
        raise Failure(
            f"template: {name} has no counterpart, and the model '{base}' has no chat template of its own.",
            param="template",
            hint=f"Register the model with a chat_template. These have one: {', '.join(TEMPLATES)}.",
        )
    return found | {"chat_template": TEMPLATES[name]}


def _base_model(service: Service, config: Config) -> str:
    source = str(config.get("model_name_or_path", ""))
    sources = {source, f"hf://{source}", f"modelscope://{source}"}
    for model in service.pages("/models", "id"):
        if model["source"] in sources:
            return str(model["name"])
    hint = f"burnish models add NAME {source or 'SOURCE'}; or name another one with --base-model."
    raise Failure(f"No model is registered from '{source}'.", param="model_name_or_path", hint=hint)


def _dataset(service: Service, config: Config, key: str) -> str:
    name = config.get(key)
    if not isinstance(name, str) or "," in name:
        raise Failure(
            f"{key}: {name} has no counterpart: a job trains on one dataset.",
            param=key,
            hint="Make one file of them, and upload it.",
        )
    for dataset in service.pages("/datasets", "id"):
        if dataset["name"] == name:
            return str(dataset["id"])
    raise Failure(
        f"There is no dataset called '{name}'.",
        param=key,
        hint="burnish datasets import takes it from LLaMA-Factory's dataset_info.json.",
    )


def read(path: Path) -> Config:
    """The configuration in a YAML file. Raises `Failure`."""
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise Failure(f"{path} cannot be read: {error}", param="config") from error
    if not isinstance(config, dict) or not all(isinstance(key, str) for key in config):
        raise Failure(f"{path} holds no configuration: a YAML mapping is expected.", param="config")
    return config


def body_of(config: Config, reward_model: str | None = None) -> Config:
    """The body of `POST /jobs` that trains the same, but for `base_model` and `dataset`, which are named otherwise here, and so
    is what rewards the answers of `ppo`.

    Raises `Failure` with the keys that have no counterpart.
    """
    config = _stated(config)
    _check_trains(config)
    config |= {"reward_model": reward_model}
    unknown = [key for key in config if key not in READ | SETTLED | SAME.keys() and not _says_nothing(key, config[key])]
    if unknown:
        shown = ", ".join(f"{key}: {config[key]}" for key in unknown)
        raise Failure(
            f"These keys have no counterpart: {shown}.", param="config", hint="Take them out of a copy of the file."
        )
    given, flat = DEFAULTS | config, Config()
    for key, choices in CHOICES.items():
        if key in given and given[key] not in choices:
            raise Failure(
                f"{key} {given[key]} has no counterpart.", param="config", hint=f"{', '.join(choices)} have one."
            )
    for key, ours in SAME.items():
        if key in given:
            flat[ours] = _number(given[key])
    for rule in RULES:
        flat |= rule(given)
    return _without_foreign(flat)


def _stated(config: Config) -> Config:
    """Its keys but those that are null, which says as much as leaving them out."""
    return {key: value for key, value in config.items() if value is not None}


def _check_trains(config: Config) -> None:
    """Raises `Failure` where a model is only judged or asked. `do_train` is false by default, but a file that says nothing of what
    to do is handed over to be trained."""
    if not config.get("do_train", not (config.get("do_eval") or config.get("do_predict"))):
        raise Failure(
            "do_train: false has no counterpart: there is nothing to train.",
            param="do_train",
            hint="Set do_train to true in a copy of the file.",
        )


def _says_nothing(key: str, value: Any) -> bool:
    if key in NEUTRAL and _number(value) == NEUTRAL[key]:
        return True
    return value is False and NEUTRAL.get(key) is not True


def _method(config: Config) -> Config:
    kind = config["finetuning_type"]
    bits = config.get("quantization_bit")
    layers = _number(config.get("freeze_trainable_layers", 2))
    if kind == "freeze" and layers < 1:
        raise Failure(
            f"freeze_trainable_layers {layers} has no counterpart.",
            param="config",
            hint="A number of the last layers has one.",
        )
    if bits is not None and (
        kind != "lora" or bits not in (4, 8) or config.get("quantization_method", "bnb") not in ("bnb", "bitsandbytes")
    ):
        raise Failure(
            f"quantization_bit {bits} has no counterpart.",
            param="config",
            hint="4 and 8 of bitsandbytes, with lora, have one.",
        )
    low_rank = [name for name in LOW_RANK if config.get(f"use_{name}")]
    if len(low_rank) > 1 or (low_rank and kind != "full"):
        raise Failure(
            f"use_{' and use_'.join(low_rank)} with finetuning_type {kind} has no counterpart.",
            param="config",
            hint="One of use_galore and use_apollo, with full, has one.",
        )
    depths = config.get("mixture_of_depths")
    if depths is not None and (depths != "convert" or kind != "full" or low_rank):
        raise Failure(
            f"mixture_of_depths {depths} has no counterpart.",
            param="config",
            hint="convert, with finetuning_type full and the plain optimiser, has one.",
        )
    if depths:
        return {"method.type": "mod"}
    if low_rank:
        [name] = low_rank
        options = ("rank", "update_interval", "scale")
        given = {f"method.{option}": config.get(f"{name}_{option}") for option in options}
        return {"method.type": name} | {path: _number(value) for path, value in given.items() if value is not None}
    found = Config({"method.type": "qlora" if bits else kind})
    if bits == 8:
        found["method.quantization"] = "int8"
    variants = [
        ours
        for key, ours in (("use_rslora", "rslora"), ("use_dora", "dora"), ("pissa_init", "pissa"))
        if config.get(key)
    ]
    if len(variants) > 1:
        raise Failure(
            f"{' and '.join(variants)} together have no counterpart.", param="config", hint="Choose one of them."
        )
    if variants:
        found["method.variant"] = variants[0]
    targets = config.get("lora_target", "all")
    if targets != "all":
        found["method.target_modules"] = (
            targets if isinstance(targets, list) else [t.strip() for t in targets.split(",")]
        )
    return found


def _batch_size(config: Config) -> int:
    return int(config["per_device_train_batch_size"]) * int(config["gradient_accumulation_steps"])


def _steps(config: Config) -> Config:
    """Its `max_steps` overrides the epochs; ours ends at whichever of both is first."""
    steps, found = int(config.get("max_steps", -1)), Config({"hyperparameters.batch_size": _batch_size(config)})
    if steps > 0:
        found |= {"hyperparameters.max_steps": steps, "hyperparameters.epochs": MOST_EPOCHS}
    return found


def _schedule(config: Config) -> Config:
    """Its `constant` has no warm-up, whatever `warmup_ratio` says."""
    kind = config["lr_scheduler_type"]
    warmup = {"hyperparameters.warmup_ratio": 0.0} if kind == "constant" else {}
    return {"hyperparameters.scheduler": SCHEDULERS[kind]} | warmup


def _noise(config: Config) -> Config:
    """NEFTune's is the Trainer's in every stage there but `ppo`, whose loop is its own; ours is of `sft` alone."""
    alpha, stage = _number(config.get("neftune_noise_alpha", 0)), config["stage"]
    if not alpha or stage == "ppo":
        return {}
    if stage != "sft":
        raise Failure(
            f"neftune_noise_alpha {alpha} has no counterpart in stage {stage}.",
            param="config",
            hint="It has one in stage sft. Take it out of a copy of the file.",
        )
    return {"hyperparameters.neftune_alpha": alpha}


def _validation(config: Config) -> Config:
    share = float(config.get("val_size", 0))
    if share > 0.5:
        raise Failure(
            f"val_size {share:g} has no counterpart.",
            param="config",
            hint="A share of the rows, at most 0.5, or eval_dataset has one.",
        )
    judging = _judging(config)
    if share:
        return {"validation.fraction": share} | {f"validation.{name}": value for name, value in judging.items()}
    if judging.keys() - {"every"} and config.get("eval_dataset") is None:
        raise Failure(
            "load_best_model_at_end and early_stopping_steps have no counterpart without rows to validate on.",
            param="config",
            hint="Add val_size or eval_dataset.",
        )
    return {}


def _judging(config: Config) -> Config:
    """When rows are validated on, and what follows from it, as fields of `validation`. Raises `Failure`."""
    found = Config()
    if config.get("eval_strategy") == "steps":
        every = float(config.get("eval_steps") or config.get("logging_steps") or 500)
        if every < 1:
            raise Failure(
                f"eval_steps {every:g} has no counterpart.", param="config", hint="A number of steps has one."
            )
        found["every"] = int(every)
    if config.get("early_stopping_steps") is not None:  # of which ours would keep the best by itself
        found |= {"patience": int(config["early_stopping_steps"]), "keep": "last"}
    if config.get("load_best_model_at_end"):
        found["keep"] = "best"
    return found


def _precision(config: Config) -> Config:
    """What is computed in. Whichever way attention is computed, it is the same; the worker takes the quickest that it has."""
    asked = {ours: name for name, ours in PRECISIONS.items() if config.get(name)}
    if len(asked) > 1:
        raise Failure(
            f"{' and '.join(asked.values())} together have no counterpart.", param="config", hint="Choose one of them."
        )
    return {"hyperparameters.precision": next(iter(asked))} if asked else {}


def _packing(config: Config) -> Config:
    """Texts in a row never see each other here, as with `neat_packing`."""
    asked = [bool(config[key]) for key in ("packing", "neat_packing") if key in config]
    return {"hyperparameters.packing": any(asked)} if any(asked) or "packing" in config else {}


def _drawn(config: Config) -> Config:
    """PPO becomes GRPO: both learn from answers that are drawn and rewarded, ours without a model of their values."""
    if config["stage"] != "ppo":
        return {}
    if config["reward_model"] is None:
        raise Failure(
            "stage ppo has a counterpart, rl, with a reward model that the service has.",
            param="config",
            hint="Train one with stage rm, and name it with --reward-model.",
        )
    new_tokens = int(config["max_new_tokens"])
    return {
        "stage": "rl",
        "hyperparameters.reward": [{"type": "model", "model": config["reward_model"]}],
        "hyperparameters.max_new_tokens": new_tokens,
        "hyperparameters.max_length": int(config["cutoff_len"]) + new_tokens,  # its cutoff_len is the prompt's
    }


# Each adds what follows of one or several keys.
RULES: tuple[Callable[[Config], Config], ...] = (
    _method,
    _steps,
    _schedule,
    _noise,
    _validation,
    _precision,
    _packing,
    _drawn,
)


def _without_foreign(flat: Config) -> Config:
    """The fields as an object, without those that this stage or method does not have."""
    body = Config()
    for path, value in flat.items():
        parent, _, name = path.rpartition(".")
        if parent == "hyperparameters" and flat["stage"] not in OF_STAGE.get(name, (flat["stage"],)):
            continue
        if parent == "method" and flat["method.type"] not in OF_METHOD.get(name, (flat["method.type"],)):
            continue
        (body.setdefault(parent, {}) if parent else body)[name] = value
    return body


def _number(value: Any) -> Any:
    """YAML reads `1e-4`, and what is in quotes, as text."""
    if isinstance(value, str):
        for kind in (int, float):
            try:
                return kind(value)
            except ValueError:
                continue
    return value
