"""`python -m worker.trainer.merging MERGE OUT/`

Reads the file of a `Merge`, writes whole weights to OUT/ and one event to standard output: `finished` or `failed`.
"""

from __future__ import annotations

import sys
import traceback
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from app.jobs.spec import Merge
from worker.trainer import artifacts
from worker.trainer.base import Base, fold, load_model, own_dtype
from worker.trainer.checkpoints import unreadable_checkpoint
from worker.trainer.data.tokenizer import load_tokenizer, pad_id
from worker.trainer.events import claim_stdout
from worker.trainer.failures import Failure, of_anything

# Where the hint of a job's failure would not do.
HINTS = {"out_of_memory": "Merging needs memory for the base model in fp32: 4 bytes for each of its parameters."}


def write_merged(base: Base, adapter: Path, tokenizer: Any, stop_token_ids: list[int], folder: Path) -> None:
    """Writes the base model with an adapter added to its weights, computed in fp32, in the base's own precision. Raises
    `Failure`."""
    whole = load_model(base, torch.float32)
    try:
        merged = fold(whole, str(adapter)).to(own_dtype(base))
    except (OSError, ValueError, SafetensorError) as error:
        raise unreadable_checkpoint(adapter, error) from error
    artifacts.save_merged(merged, tokenizer, folder, stop_token_ids)


def main(arguments: list[str]) -> None:
    emit = claim_stdout()
    try:
        merge = Merge.model_validate_json(Path(arguments[0]).read_bytes())
        tokenizer = load_tokenizer(merge.base_model, merge.chat_template, merge.own_code)
        base = Base(merge.base_model, merge.own_code, merge.makes, pad_id(tokenizer), merge.folded)
        write_merged(base, Path(merge.adapter), tokenizer, merge.stop_token_ids, Path(arguments[1]))
    except Exception as error:
        traceback.print_exc()
        cause = error if isinstance(error, Failure) else of_anything(error)
        emit("failed", code=cause.code, message=cause.message, hint=HINTS.get(cause.code, cause.hint))
        return
    emit("finished")


if __name__ == "__main__":
    main(sys.argv[1:])
