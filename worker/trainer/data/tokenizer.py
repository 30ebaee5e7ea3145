"""The base model's tokenizer."""

from __future__ import annotations

from typing import Any

from transformers import AutoTokenizer

from worker.trainer.failures import unreadable_model


def load_tokenizer(folder: str, chat_template: str | None, own_code: bool) -> Any:
    """The tokenizer in `folder`, with the given chat template or its own; `own_code` lets the model's code
    run. Raises `Failure` (`model_unreadable`)."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=own_code)
    except Exception as error:
        raise unreadable_model(folder, "tokenizer", error) from error
    if chat_template is not None:
        tokenizer.chat_template = chat_template
    return tokenizer


def pad_id(tokenizer: Any) -> int:
    """What texts are padded with."""
    id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id or 0
    return int(id)
