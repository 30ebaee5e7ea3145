"""What transformers' `Trainer` is told of a job's hyperparameters."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from transformers import TrainingArguments

from app.jobs.hyperparameters import Hyperparameters, Supervised
from worker.trainer import ranks

_SCHEDULERS = {"cosine": "cosine", "linear": "linear", "constant": "constant_with_warmup"}


def arguments_of(settings: Hyperparameters, steps: int, out: Path) -> TrainingArguments:
    """Of a run of so many steps that writes below `out`."""
    arguments = TrainingArguments(
        output_dir=str(out),
        max_steps=steps,
        per_device_train_batch_size=settings.batch_size,
        gradient_accumulation_steps=1,
        learning_rate=settings.learning_rate,
        lr_scheduler_type=_SCHEDULERS[settings.scheduler],
        # In steps: the Trainer takes a ratio too, but reads 1.0 as one step.
        warmup_steps=math.ceil(settings.warmup_ratio * steps),
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        activation_checkpointing=settings.gradient_checkpointing,
        activation_checkpointing_kwargs={"use_reentrant": False},
        optim="adamw_torch_fused",
        neftune_noise_alpha=settings.neftune_alpha if isinstance(settings, Supervised) else None,
        seed=(settings.seed + ranks.rank()) % 2**32,  # of dropout and noise: each process draws its own
        data_seed=settings.seed,
        use_cpu=not torch.cuda.is_available(),
        bf16=False,  # `autocast` around the loss alone; the Trainer's would copy all logits to fp32
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="no",
        eval_strategy="no",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=torch.cuda.is_available(),
    )
    _ = arguments.device  # sets _n_gpu
    arguments._n_gpu = 1  # with several in sight the Trainer would use DataParallel
    return arguments
