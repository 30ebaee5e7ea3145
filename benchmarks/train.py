"""Training speed and memory: ours beside TRL's `SFTTrainer` and LLaMA-Factory, same model, rows and machine, in turn.

    python benchmarks/train.py
    python benchmarks/train.py --rows 1500 --long-rows 64 --llamafactory /path/to/venv

All train LoRA of rank 8 on all linear layers, 16 rows a step, one epoch, on the answers alone. Short rows are the reviews'; long
ones are pieces of a book. TRL runs at its defaults, and in the settings that are its best here; LLaMA-Factory (0.9.5, in an
environment of its own with the same torch) at its defaults. Every contender is a process of its own, timed by its own account of
the training alone, its memory by the kernel's. Useful tokens are those of the rows as our renderer writes them, without padding,
for all alike. Other work on the machine can only slow a run, so of each contender the quickest of several counts, taken in turn.
Prints a Markdown table for each kind of rows, with the share of what this machine reaches in matrix products.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from app.settings import REPOSITORY

SHARED = REPOSITORY.parent / "shared"
BATCH, RANK, LEARNING_RATE = 16, 8, 1e-3
Row = dict[str, str]

# TRL's settings beside its defaults; padding and checkpointing are what costs most there.
PLAIN = {"gradient_checkpointing": False}
TRL: dict[str, dict[str, Any]] = {
    "TRL, defaults": {},
    "TRL, rows of like length": PLAIN | {"train_sampling_strategy": "group_by_length"},
    "TRL, rows of like length, chunked loss": PLAIN | {"train_sampling_strategy": "group_by_length", "loss_type": "chunked_nll"},
    "TRL, packed": PLAIN | {"packing": True},
}  # fmt: skip


@dataclass(frozen=True)
class Work:
    """What all contenders train on: the model's folder and rows of `instruction` and `output`, at most so many tokens long."""

    model: Path
    rows: list[Row]
    max_length: int
    threads: int


@dataclass(frozen=True)
class Measured:
    """Seconds of training alone, and the peak of the process's memory in bytes."""

    seconds: float
    peak: int


def main() -> None:
    options = arguments()
    if options.trl:
        train_with_trl(json.loads(Path(options.trl).read_text()))
        return
    kinds = {
        "short": (short_rows(options.data, options.rows), 1024),
        "long": (long_rows(options.book, options.long_rows), 2048),
    }
    peak = matrix_products(options.threads)
    print(f"Matrix products in bfloat16, {options.threads} threads: {peak / 1e9:.0f} GFLOP/s.\n")
    for kind, (rows, max_length) in kinds.items():
        if rows:
            compare(
                kind, Work(options.model, rows, max_length, options.threads), options.llamafactory, peak, options.rounds
            )


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Training speed beside TRL and LLaMA-Factory.")
    parser.add_argument("--rows", type=int, default=1500, help="short rows; 0 leaves them out")
    parser.add_argument("--long-rows", type=int, default=64, help="long rows; 0 leaves them out")
    parser.add_argument("--rounds", type=int, default=2, help="of all contenders; of each its quickest run counts")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of every contender")
    parser.add_argument("--data", type=Path, default=SHARED / "data/reviews_zh/train.jsonl", help="the reviews")
    parser.add_argument("--book", type=Path, default=SHARED / "data/corpus_clear/wizard_of_oz_gutenberg.txt")
    parser.add_argument("--model", type=Path, default=SHARED / "models/reviews-base", help="the base model's folder")
    parser.add_argument("--llamafactory", type=Path, help="an environment that has LLaMA-Factory 0.9.5")
    parser.add_argument("--trl", help=argparse.SUPPRESS)  # this script is TRL's process too
    return parser.parse_args()


def short_rows(path: Path, count: int) -> list[Row]:
    with path.open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in itertools.islice(lines, count)]
    return [{"instruction": f"{row['instruction']}\n{row['input']}", "output": row["output"]} for row in rows]


def long_rows(path: Path, count: int) -> list[Row]:
    """Pieces of a book, of which the second half is to be written; each begins a little after the one before."""
    text = re.sub(r"\s+", " ", path.read_text(encoding="utf-8"))
    length, step = 5000, max(1, (len(text) - 5000) // max(1, count))
    return [
        {"instruction": text[at : at + length // 2], "output": text[at + length // 2 : at + length]}
        for at in range(0, step * count, step)
    ]


def matrix_products(threads: int) -> float:
    """Operations a second of bfloat16 matrix products, the best of several."""
    import torch

    torch.set_num_threads(threads)
    a, b = (torch.randn(2048, 2048, dtype=torch.bfloat16) for _ in range(2))
    best = 0.0
    for _ in range(20):
        began = time.perf_counter()
        a @ b
        best = max(best, 2 * 2048**3 / (time.perf_counter() - began))
    return best


def compare(kind: str, work: Work, llamafactory: Path | None, peak: float, rounds: int) -> None:
    contenders: dict[str, Callable[[Path], Measured]] = {"Burnish": lambda folder: ours(work, folder)}
    contenders |= {name: lambda folder, s=settings: trl(work, s, folder) for name, settings in TRL.items()}
    if llamafactory:
        contenders["LLaMA-Factory 0.9.5, defaults"] = lambda folder: llama_factory(work, llamafactory, folder)
    tokens, parameters = counted(work)
    print(f"{len(work.rows):,} {kind} rows, {tokens:,} tokens, {tokens / len(work.rows):.0f} a row\n")
    quickest: dict[str, Measured] = {}
    for _ in range(rounds):
        for name, run in contenders.items():
            with tempfile.TemporaryDirectory() as folder:
                found = run(Path(folder))
            print(f"{name}: {found.seconds:.1f} s", file=sys.stderr, flush=True)
            if name not in quickest or found.seconds < quickest[name].seconds:
                quickest[name] = found
    print("| | useful tokens/s | ours is | of the matrix products | peak memory |\n|---|---|---|---|---|")
    for name, found in quickest.items():
        rate = tokens / found.seconds
        # LoRA needs the gradient of what passes through a weight, and not that of the weight: 4 operations, not 6.
        share = 4 * parameters * rate / peak
        ratio = found.seconds / quickest["Burnish"].seconds
        print(f"| {name} | {rate:,.0f} | {ratio:.1f} × | {share:.0%} | {found.peak / 2**20:,.0f} MiB |")
    print(flush=True)


def counted(work: Work) -> tuple[int, int]:
    """The rows' tokens, cut as all cut them, and the model's parameters that multiply, embeddings apart."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(work.model)
    texts = [tokenizer.apply_chat_template(messages(row), tokenize=False) for row in work.rows]
    tokens = sum(min(len(ids), work.max_length) for ids in tokenizer(texts).input_ids)
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(work.model))
    return tokens, model.num_parameters() - model.get_input_embeddings().weight.numel()


def messages(row: Row) -> list[dict[str, str]]:
    return [{"role": "user", "content": row["instruction"]}, {"role": "assistant", "content": row["output"]}]


def process(command: list[str], environment: dict[str, str], log: Path) -> int:
    """Runs it to its end; its peak memory in bytes."""
    with log.open("wb") as written:
        started = subprocess.Popen(
            command, cwd=REPOSITORY, env=os.environ | environment, stdout=written, stderr=subprocess.STDOUT
        )
        _, status, used = os.wait4(started.pid, 0)
    if status:
        sys.exit(f"{command}:\n{log.read_text(errors='replace')[-3000:]}")
    return used.ru_maxrss * 1024


def threads_of(work: Work) -> dict[str, str]:
    return {"OMP_NUM_THREADS": str(work.threads), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "true"}


def ours(work: Work, folder: Path) -> Measured:
    """The trainer's own command."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from app.datasets.canonical import SCHEMAS

    pq.write_table(
        pa.Table.from_pylist([{"messages": messages(row)} for row in work.rows], SCHEMAS["chat"]), folder / "rows"
    )
    settings = {"epochs": 1, "batch_size": BATCH, "learning_rate": LEARNING_RATE, "max_length": work.max_length}
    spec = {
        "method": {"rank": RANK},
        "hyperparameters": settings,
        "check": {"max_cut_share": 1, "scorecard": False},
        "deploy": {"mode": "adapter"},
    }
    paths = {
        "base_model": str(work.model),
        "chat_template": None,
        "rows": str(folder / "rows"),
        "threads": work.threads,
    }
    (folder / "spec.json").write_text(json.dumps({"job": "job_1", "attempt": 1, "spec": spec, **paths}))
    command = [sys.executable, "-m", "worker.trainer", str(folder / "spec.json"), str(folder / "out")]
    peak = process(command, threads_of(work), folder / "log")
    last = next(
        json.loads(line) for line in (folder / "log").read_text().splitlines() if line.startswith('{"type": "finished"')
    )
    return Measured(last["training_seconds"], peak)


def trl(work: Work, settings: dict[str, Any], folder: Path) -> Measured:
    told = {
        "model": str(work.model), "rows": work.rows, "max_length": work.max_length, "settings": settings,
        "out": str(folder / "out"), "threads": work.threads,
    }  # fmt: skip
    (folder / "told.json").write_text(json.dumps(told))
    peak = process([sys.executable, __file__, "--trl", str(folder / "told.json")], threads_of(work), folder / "log")
    return Measured(json.loads((folder / "out/seconds.json").read_text()), peak)


def train_with_trl(told: dict[str, Any]) -> None:
    """TRL's process: trains, and writes the seconds."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer

    torch.set_num_threads(told["threads"])
    rows = [{"prompt": messages(row)[:1], "completion": messages(row)[1:]} for row in told["rows"]]
    arguments = SFTConfig(
        output_dir=told["out"], use_cpu=True, per_device_train_batch_size=BATCH, num_train_epochs=1, learning_rate=LEARNING_RATE,
        max_length=told["max_length"], report_to="none", save_strategy="no", **told["settings"],
    )  # fmt: skip
    adapter = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", task_type="CAUSAL_LM")
    trainer = SFTTrainer(told["model"], arguments, train_dataset=Dataset.from_list(rows), peft_config=adapter)
    found = trainer.train()
    Path(told["out"]).mkdir(exist_ok=True)
    (Path(told["out"]) / "seconds.json").write_text(json.dumps(found.metrics["train_runtime"]))


def llama_factory(work: Work, environment: Path, folder: Path) -> Measured:
    (folder / "rows.json").write_text(json.dumps([row | {"input": ""} for row in work.rows]))  # a column that it wants
    (folder / "dataset_info.json").write_text(json.dumps({"rows": {"file_name": "rows.json"}}))
    (folder / "torchaudio").mkdir()  # imported at its start, and not needed
    (folder / "torchaudio/__init__.py").touch()
    settings = {
        "model_name_or_path": str(work.model), "stage": "sft", "do_train": True, "finetuning_type": "lora", "lora_rank": RANK,
        "lora_target": "all", "dataset": "rows", "dataset_dir": str(folder), "template": "qwen", "output_dir": str(folder / "out"),
        "per_device_train_batch_size": BATCH, "num_train_epochs": 1, "learning_rate": LEARNING_RATE, "use_cpu": True,
        "report_to": "none", "cutoff_len": work.max_length, "save_strategy": "no",
    }  # fmt: skip
    (folder / "job.yaml").write_text(json.dumps(settings))  # which is YAML too
    command = [str(environment / "bin/llamafactory-cli"), "train", str(folder / "job.yaml")]
    peak = process(command, threads_of(work) | {"PYTHONPATH": str(folder)}, folder / "log")
    results = json.loads((folder / "out/train_results.json").read_text())
    return Measured(results["train_runtime"], peak)


if __name__ == "__main__":
    main()
