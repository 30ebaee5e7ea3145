"""What becomes of each key of a LLaMA-Factory training configuration: see `app.cli.llamafactory`."""

from __future__ import annotations

from typing import Any

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
# Keys that are read by a rule of their own.
READ = {
    "do_train", "model_name_or_path", "dataset", "eval_dataset", "finetuning_type", "quantization_bit", "quantization_method",
    "lora_target", "use_rslora", "use_dora", "pissa_init", "max_steps", "val_size", "neftune_noise_alpha", "optim",
    "per_device_train_batch_size", "gradient_accumulation_steps", "lr_scheduler_type", "eval_strategy", "eval_steps",
    "load_best_model_at_end", "metric_for_best_model", "early_stopping_steps", "use_galore", "galore_rank",
    "galore_update_interval", "galore_scale", "use_apollo", "apollo_rank", "apollo_update_interval", "apollo_scale",
    "mixture_of_depths", "template", "enable_thinking", "bf16", "pure_bf16", "fp16", "flash_attn",
    "packing", "neat_packing", "reward_model", "max_new_tokens",
}  # fmt: skip
# What the service or the model settles, or what changes nothing in the result: rows of like length share a step here anyway.
SETTLED = {
    "do_eval", "do_predict", "output_dir", "overwrite_output_dir", "overwrite_cache", "logging_steps", "plot_loss",
    "report_to", "run_name", "preprocessing_num_workers", "dataloader_num_workers", "ddp_timeout",
    "trust_remote_code", "save_strategy", "save_only_model", "pissa_convert", "pissa_iter", "reward_model_type",
    "per_device_eval_batch_size", "eval_on_start", "dataset_dir", "media_dir", "cache_dir", "gradient_checkpointing",
    "disable_gradient_checkpointing", "include_num_input_tokens_seen", "logging_first_step", "hub_model_id",
    "use_fast_tokenizer", "low_cpu_mem_usage", "print_param_status", "group_by_length",
}  # fmt: skip
# Keys with a value that says nothing else than a job of ours does. Of any other key `false` says nothing either: it turns off what
# is off by default, unless True stands here.
NEUTRAL: Config = {
    "mask_history": False, "train_on_prompt": False, "max_samples": None,
    "additional_target": None, "adapter_name_or_path": None, "galore_target": "all", "galore_proj_type": "std",
    "apollo_target": "all", "apollo_proj": "random", "apollo_proj_type": "std", "apollo_scale_type": "channel",
    "use_badam": False, "shift_attn": False, "use_unsloth": False,
    "enable_liger_kernel": False, "rope_scaling": None, "pref_ftx": 0.0, "pref_bco_weight": 0.0, "dpo_label_smoothing": 0.0,
    "adam_beta1": 0.9, "adam_beta2": 0.999, "adam_epsilon": 1e-8,
    "freeze_trainable_modules": "all", "label_smoothing_factor": 0.0, "warmup_steps": 0,
    "ppo_target": 6.0, "ppo_buffer_size": 1, "ppo_epochs": 4, "top_p": 1.0, "top_k": 0,
    "streaming": False, "deepspeed": None, "fsdp": "", "resize_vocab": False, "create_new_adapter": False,
    "ignore_pad_token_for_loss": True, "freeze_vision_tower": True, "freeze_multi_modal_projector": True, "do_sample": True,
    "average_tokens_across_devices": True,
}  # fmt: skip
# Its templates → ours, for models that have none of their own.
TEMPLATES = {
    "default": "plain", "chatml": "chatml", "qwen": "chatml", "qwen3": "qwen3",
    "qwen3_nothink": "chatml", "llama2": "llama2", "llama3": "llama3", "mistral": "mistral", "gemma": "gemma", "gemma2": "gemma",
    "gemma3": "gemma", "phi": "phi3", "phi_small": "phi3", "phi4": "phi4", "glm4": "glm4",
}  # fmt: skip
# `pure_bf16` keeps what is trained in bf16 too; ours is in fp32, so that small updates are not rounded away.
PRECISIONS = {"bf16": "bf16", "pure_bf16": "bf16", "fp16": "fp16"}
SCHEDULERS = {"cosine": "cosine", "linear": "linear", "constant": "constant", "constant_with_warmup": "constant"}
# Keys of which some values have a counterpart.
CHOICES = {
    "finetuning_type": ("lora", "full", "freeze"),
    "lr_scheduler_type": tuple(SCHEDULERS),
    "optim": ("adamw_torch", "adamw_torch_fused", "adamw_hf"),  # AdamW, computed in several ways
    "flash_attn": ("auto", "disabled", "sdpa", "fa2", "fa3"),
    "pref_loss": ("sigmoid", "hinge", "ipo", "orpo", "simpo"),
    "metric_for_best_model": ("eval_loss", "loss"),
}
# Field → the stages or methods that have it: LLaMA-Factory does not mind a key that another one would read.
OF_STAGE = {"loss": ("dpo",), "beta": ("dpo", "kto"), "simpo_gamma": ("dpo",), "packing": ("sft", "pt"),
            "desirable_weight": ("kto",), "undesirable_weight": ("kto",), "temperature": ("rl",)}  # fmt: skip
ADAPTERS = ("lora", "qlora")
OF_METHOD = {"rank": ADAPTERS + LOW_RANK, "alpha": ADAPTERS, "dropout": ADAPTERS, "plus": ADAPTERS, "target_modules": ADAPTERS,
             "variant": ADAPTERS, "quantization": ("qlora",), "double_quantization": ("qlora",), "layers": ("freeze",)}  # fmt: skip
