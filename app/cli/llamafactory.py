"""A LLaMA-Factory training configuration → the body of the same job."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from app.cli.client import Service, segment
from app.cli.failure import Failure

Config = dict[str, Any]

# LLaMA-Factory's key → ours, the value being the same.
SAME = {
    "stage": "stage",
    "lora_rank": "method.rank",
    "lora_alpha": "method.alpha",
    "lora_dropout": "method.dropout",
    "loraplus_lr_ratio": "method.plus",
    "quantization_type": "method.quantization",
    "double_quantization": "method.double_quantization",
    "freeze_trainable_layers": "method.layers",
    "cutoff_len": "hyperparameters.max_length",
    "learning_rate": "hyperparameters.learning_rate",
    "num_train_epochs": "hyperparameters.epochs",
    "warmup_ratio": "hyperparameters.warmup_ratio",
    "weight_decay": "hyperparameters.weight_decay",
    "seed": "hyperparameters.seed",
    "max_grad_norm": "hyperparameters.max_grad_norm",
    "save_steps": "hyperparameters.checkpoint_every",
    "save_total_limit": "hyperparameters.keep_checkpoints",
    "neftune_noise_alpha": "hyperparameters.neftune_alpha",
    "pref_loss": "hyperparameters.loss",
    "pref_beta": "hyperparameters.beta",
    "simpo_gamma": "hyperparameters.simpo_gamma",
    "kto_chosen_weight": "hyperparameters.desirable_weight",
    "kto_rejected_weight": "hyperparameters.undesirable_weight",
    "temperature": "hyperparameters.temperature",
}
# What a job means that leaves them out, where a job of ours would mean something else.
DEFAULTS: Config = {
    "stage": "sft", "learning_rate": 5e-5, "num_train_epochs": 3.0, "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 1, "lr_scheduler_type": "linear", "warmup_ratio": 0.0, "cutoff_len": 2048,
    "finetuning_type": "lora", "galore_rank": 16, "apollo_rank": 16, "temperature": 0.95, "max_new_tokens": 1024,
}  # fmt: skip
# Optimisers of low rank: the options of each are its name's.
LOW_RANK = ("galore", "apollo")
# Keys that `body_of` reads by itself.
READ = {
    "model_name_or_path", "dataset", "eval_dataset", "finetuning_type", "quantization_bit", "quantization_method",
    "lora_target", "use_rslora", "use_dora", "pissa_init", "pissa_convert", "pissa_iter", "max_steps", "val_size",
    "per_device_train_batch_size", "gradient_accumulation_steps", "lr_scheduler_type", "eval_strategy", "eval_steps",
    "load_best_model_at_end", "metric_for_best_model", "greater_is_better", "early_stopping_steps",
    "use_galore", "galore_rank",
    "galore_update_interval", "galore_scale", "use_apollo", "apollo_rank", "apollo_update_interval", "apollo_scale",
    "mixture_of_depths", "template", "enable_thinking", "bf16", "pure_bf16", "fp16", "flash_attn",
    "packing", "neat_packing", "reward_model", "reward_model_type", "max_new_tokens",
}  # fmt: skip
# What the service or the model settles, or what changes nothing in the result.
SETTLED = {
    "do_train", "do_eval", "do_predict", "output_dir", "overwrite_output_dir", "overwrite_cache", "logging_steps", "plot_loss",
    "report_to", "run_name", "preprocessing_num_workers", "dataloader_num_workers", "ddp_timeout",
    "trust_remote_code", "resume_from_checkpoint", "save_strategy", "save_only_model",
    "per_device_eval_batch_size", "eval_on_start", "dataset_dir", "media_dir", "cache_dir", "gradient_checkpointing",
    "disable_gradient_checkpointing", "include_num_input_tokens_seen", "logging_first_step", "hub_model_id", "push_to_hub",
    "use_fast_tokenizer", "low_cpu_mem_usage", "print_param_status", "group_by_length", "optim",
}  # fmt: skip
# Keys with a value that says nothing else than a job of ours does.
NEUTRAL: Config = {
    "mask_history": False, "train_on_prompt": False, "max_samples": None,
    "additional_target": None, "adapter_name_or_path": None, "galore_target": "all", "galore_proj_type": "std",
    "apollo_target": "all", "apollo_proj": "random", "apollo_proj_type": "std", "apollo_scale_type": "channel",
    "use_badam": False, "shift_attn": False, "use_unsloth": False,
    "enable_liger_kernel": False, "rope_scaling": None, "pref_ftx": 0.0, "dpo_label_smoothing": 0.0,
    "freeze_trainable_modules": "all", "label_smoothing_factor": 0.0, "warmup_steps": 0,
    "ppo_target": 6.0, "ppo_buffer_size": 1, "ppo_epochs": 4, "top_p": 1.0, "top_k": 0,
    "streaming": False, "deepspeed": None, "fsdp": "", "resize_vocab": False, "create_new_adapter": False,
}  # fmt: skip
# Its templates → ours, for models that have none of their own.
TEMPLATES = {
    "default": "plain", "chatml": "chatml", "qwen": "chatml", "qwen3": "qwen3",
    "qwen3_nothink": "chatml", "llama2": "llama2", "llama3": "llama3", "mistral": "mistral", "gemma": "gemma", "gemma2": "gemma",
    "gemma3": "gemma", "phi": "phi3", "phi_small": "phi3", "phi4": "phi4", "glm4": "glm4",
}  # fmt: skip
# `pure_bf16` keeps what is trained in bf16 too; ours is in fp32, so that small updates are not rounded away.
PRECISIONS = {"bf16": "bf16", "pure_bf16": "bf16", "fp16": "fp16"}
ATTENTIONS = ("auto", "disabled", "sdpa", "fa2", "fa3")
SCHEDULERS = {"cosine": "cosine", "linear": "linear", "constant": "constant", "constant_with_warmup": "constant"}


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
    return body


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
    config = {key: value for key, value in config.items() if value is not None} | {"reward_model": reward_model}
    unknown = [key for key in config if key not in READ | SETTLED | SAME.keys() and not _says_nothing(key, config[key])]
    if unknown:
        shown = ", ".join(f"{key}: {config[key]}" for key in unknown)
        raise Failure(
            f"These keys have no counterpart: {shown}.", param="config", hint="Take them out of a copy of the file."
        )
    given, flat = DEFAULTS | config, Config()
    for key, ours in SAME.items():
        if key in given:
            flat[ours] = _number(given[key])
    for rule in RULES:
        flat |= rule(given)
    return _without_foreign(flat)


def _says_nothing(key: str, value: Any) -> bool:
    return value is False or (key in NEUTRAL and value == NEUTRAL[key])


def _method(config: Config) -> Config:
    kind = config["finetuning_type"]
    bits = config.get("quantization_bit")
    if kind not in ("lora", "full", "freeze"):
        raise Failure(
            f"finetuning_type {kind} has no counterpart.", param="config", hint="lora, full and freeze have one."
        )
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


def _batches(config: Config) -> Config:
    rows = int(config["per_device_train_batch_size"]) * int(config["gradient_accumulation_steps"])
    steps = int(config.get("max_steps", -1))
    return {"hyperparameters.batch_size": rows} | ({"hyperparameters.max_steps": steps} if steps > 0 else {})


def _schedule(config: Config) -> Config:
    kind = config["lr_scheduler_type"]
    if kind not in SCHEDULERS:
        raise Failure(
            f"lr_scheduler_type {kind} has no counterpart.", param="config", hint=f"{', '.join(SCHEDULERS)} have one."
        )
    return {"hyperparameters.scheduler": SCHEDULERS[kind]}


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
    metric = config.get("metric_for_best_model", "eval_loss")
    if metric not in ("eval_loss", "loss"):
        raise Failure(f"metric_for_best_model {metric} has no counterpart.", param="config", hint="eval_loss has one.")
    found = Config()
    if config.get("eval_strategy") == "steps":
        every = float(config.get("eval_steps") or config.get("logging_steps") or 500)
        if every < 1:
            raise Failure(
                f"eval_steps {every:g} has no counterpart.", param="config", hint="A number of steps has one."
            )
        found["every"] = int(every)
    if config.get("load_best_model_at_end"):
        found["keep"] = "best"
    if config.get("early_stopping_steps") is not None:
        found["patience"] = int(config["early_stopping_steps"])
    return found


def _precision(config: Config) -> Config:
    """What is computed in. Whichever way attention is computed, it is the same; the worker takes the quickest that it has."""
    asked = {ours: name for name, ours in PRECISIONS.items() if config.get(name)}
    if len(asked) > 1:
        raise Failure(
            f"{' and '.join(asked.values())} together have no counterpart.", param="config", hint="Choose one of them."
        )
    attention = config.get("flash_attn", "auto")
    if attention not in ATTENTIONS:
        raise Failure(
            f"flash_attn {attention} has no counterpart.", param="config", hint=f"{', '.join(ATTENTIONS)} have one."
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


# Each adds what follows of several keys.
RULES: tuple[Callable[[Config], Config], ...] = (
    _method,
    _batches,
    _schedule,
    _validation,
    _precision,
    _packing,
    _drawn,
)
# Field → the stages or methods that have it: LLaMA-Factory does not mind a key that another one would read.
OF_STAGE = {"loss": ("dpo",), "beta": ("dpo", "kto"), "simpo_gamma": ("dpo",), "neftune_alpha": ("sft",), "packing": ("sft", "pt"),
            "desirable_weight": ("kto",), "undesirable_weight": ("kto",), "temperature": ("rl",)}  # fmt: skip
ADAPTERS = ("lora", "qlora")
OF_METHOD = {"rank": ADAPTERS + LOW_RANK, "alpha": ADAPTERS, "dropout": ADAPTERS, "plus": ADAPTERS, "target_modules": ADAPTERS,
             "variant": ADAPTERS, "quantization": ("qlora",), "double_quantization": ("qlora",), "layers": ("freeze",)}  # fmt: skip


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
    """YAML reads `1e-4` as text."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value
