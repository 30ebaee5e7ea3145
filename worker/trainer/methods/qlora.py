"""Low-rank adapters on a quantised base model (Dettmers et al., 2023, arXiv:2305.14314), quantised by bitsandbytes."""

from __future__ import annotations

from typing import Any

import torch
from bitsandbytes.nn.modules import Linear4bit
from peft import prepare_model_for_kbit_training
from transformers import BitsAndBytesConfig

from app.jobs.methods import Qlora
from worker.trainer.base import Base, load_model
from worker.trainer.methods import lora
from worker.trainer.methods.lora import KIND, load, of_stage, optimizer, save
from worker.trainer.precision import compute_dtype

__all__ = ["KIND", "load", "load_base", "of_stage", "optimizer", "prepare", "save"]


def load_base(base: Base, config: Qlora) -> Any:
    """With the weights of its linear layers in 4 or 8 bits; they are multiplied in the precision that is trained in."""
    whole = ["lm_head"]  # what makes logits of the last hidden states
    compute = compute_dtype()
    if config.quantization == "int8":
        quantization = BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=whole)
    else:
        quantization = BitsAndBytesConfig(
            load_in_4bit=True,
            llm_int8_skip_modules=whole,
            bnb_4bit_quant_type=config.quantization,
            bnb_4bit_use_double_quant=config.double_quantization,
            bnb_4bit_compute_dtype=compute,
        )
    where = {"": 0} if torch.cuda.is_available() else {"": "cpu"}
    model = load_model(base, compute, quantization_config=quantization, device_map=where)
    for module in model.modules():
        if isinstance(module, Linear4bit):
            # Else a pass without gradients packs the weights for good, where the CPU has AVX512-BF16: no gradient goes through
            # them from then on.
            module.support_avx512bf16_for_cpu = False
    return model


def prepare(model: Any, config: Qlora) -> Any:
    """As `lora.prepare`; norms and whatever else is not quantised are put into fp32."""
    return lora.prepare(prepare_model_for_kbit_training(model, use_gradient_checkpointing=False), config)
