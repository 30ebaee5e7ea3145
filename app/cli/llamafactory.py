"""A LLaMA-Factory training configuration → the body of the same job."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from app.cli.client import Service
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
}
# What a job means that leaves them out, where a job of ours would mean something else.
DEFAULTS: Config = {
    "stage": "sft", "learning_rate": 5e-5, "num_train_epochs": 3.0, "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 1, "lr_scheduler_type": "linear", "warmup_ratio": 0.0, "cutoff_len": 2048,
    "finetuning_type": "lora",
}  # fmt: skip
# Keys that `body_of` reads by itself.
READ = {
    "model_name_or_path", "dataset", "eval_dataset", "finetuning_type", "quantization_bit", "quantization_method",
    "lora_target", "use_rslora", "use_dora", "pissa_init", "pissa_convert", "pissa_iter", "max_steps", "val_size",
    "per_device_train_batch_size", "gradient_accumulation_steps", "lr_scheduler_type",
}  # fmt: skip
# What the service or the model settles, or what changes nothing in the result.
SETTLED = {
    "do_train", "do_eval", "do_predict", "output_dir", "overwrite_output_dir", "overwrite_cache", "logging_steps", "plot_loss",
    "report_to", "run_name", "bf16", "fp16", "pure_bf16", "preprocessing_num_workers", "dataloader_num_workers", "ddp_timeout",
    "template", "trust_remote_code", "resume_from_checkpoint", "save_strategy", "save_only_model", "eval_strategy", "eval_steps",
    "per_device_eval_batch_size", "eval_on_start", "dataset_dir", "media_dir", "cache_dir", "flash_attn", "gradient_checkpointing",
    "disable_gradient_checkpointing", "include_num_input_tokens_seen", "logging_first_step", "hub_model_id", "push_to_hub",
    "use_fast_tokenizer", "low_cpu_mem_usage", "print_param_status", "group_by_length", "optim",
}  # fmt: skip
# Keys with a value that says nothing else than a job of ours does.
NEUTRAL: Config = {
    "packing": False, "neat_packing": False, "mask_history": False, "train_on_prompt": False, "max_samples": None,
    "additional_target": None, "adapter_name_or_path": None, "use_galore": False, "use_apollo": False,
    "use_badam": False, "mixture_of_depths": None, "shift_attn": False, "use_unsloth": False,
    "enable_liger_kernel": False, "rope_scaling": None, "pref_ftx": 0.0, "dpo_label_smoothing": 0.0,
    "freeze_trainable_modules": "all", "label_smoothing_factor": 0.0, "warmup_steps": 0,
    "streaming": False, "deepspeed": None, "fsdp": "", "resize_vocab": False, "create_new_adapter": False,
}  # fmt: skip
SCHEDULERS = {"cosine": "cosine", "linear": "linear", "constant": "constant", "constant_with_warmup": "constant"}


def named(service: Service, config: Config, base: str | None, dataset: str | None) -> Config:
    """The fields of the body that name a model and datasets: those given, else the model that is registered from where the
    configuration has it, and datasets of the names that it says. Raises `Failure` where the service has none."""
    body = Config({
        "base_model": base or _base_model(service, config),
        "dataset": dataset or _dataset(service, config, "dataset"),
    })  # fmt: skip
    if config.get("eval_dataset") is not None:
        body["validation"] = {"dataset": _dataset(service, config, "eval_dataset")}
    return body


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


def body_of(config: Config) -> Config:
    """The body of `POST /jobs` that trains the same, but for `base_model` and `dataset`, which are named otherwise here.

    Raises `Failure` with the keys that have no counterpart.
    """
    config = {key: value for key, value in config.items() if value is not None}
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
    if bits is not None and (
        kind != "lora" or bits not in (4, 8) or config.get("quantization_method", "bnb") not in ("bnb", "bitsandbytes")
    ):
        raise Failure(
            f"quantization_bit {bits} has no counterpart.",
            param="config",
            hint="4 and 8 of bitsandbytes, with lora, have one.",
        )
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
    return {"validation.fraction": share} if share else {}


# Each adds what follows of several keys.
RULES: tuple[Callable[[Config], Config], ...] = (_method, _batches, _schedule, _validation)
# Field → the stages or methods that have it: LLaMA-Factory does not mind a key that another one would read.
OF_STAGE = {"loss": ("dpo",), "beta": ("dpo", "kto"), "simpo_gamma": ("dpo",), "neftune_alpha": ("sft",),
            "desirable_weight": ("kto",), "undesirable_weight": ("kto",)}  # fmt: skip
ADAPTERS = ("lora", "qlora")
OF_METHOD = {"rank": ADAPTERS, "alpha": ADAPTERS, "dropout": ADAPTERS, "plus": ADAPTERS, "target_modules": ADAPTERS,
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
