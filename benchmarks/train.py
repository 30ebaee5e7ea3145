"""Training speed and memory: ours beside TRL's `SFTTrainer` and LLaMA-Factory, same model, rows and machine, in turn.

    python benchmarks/train.py
    python benchmarks/train.py --rows 1500 --long-rows 64 --llamafactory /path/to/venv
    python benchmarks/train.py --shape 7b                          # random weights of that shape, where there is a GPU

All train LoRA of rank 8 on all linear layers, 16 rows a step, one epoch, on the answers alone. Short rows are the reviews'; long
ones are pieces of a book. TRL runs at its defaults (but in fp32 on a CPU that is slow in bfloat16), and in the settings that are
its best here; LLaMA-Factory (0.9.5, in an environment of its own with the same torch) at its defaults. Every contender is a
process of its own, timed by its own account of the training alone. Its memory is what the kernel counts, or what the GPU had less
of while it ran. Useful tokens are those of the rows as our renderer writes them, without padding, for all alike. Other work on the
machine can only slow a run, so of each contender the quickest of several counts, taken in turn. Prints a Markdown table for each
kind of rows, with the share of what this machine reaches in matrix products.
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

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

SHARED = REPOSITORY.parent / "shared"
BATCH, RANK, LEARNING_RATE = 16, 8, 1e-3
Row = dict[str, str]

# TRL's settings beside its defaults; padding and checkpointing are what costs most there.
PLAIN: dict[str, Any] = {"gradient_checkpointing": False}
EVEN = PLAIN | {"train_sampling_strategy": "group_by_length"}
CHUNKED = EVEN | {"loss_type": "chunked_nll"}
FOURS = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": BATCH // 4}
TRL = {
    "TRL, defaults": {},
    "TRL, rows of like length": EVEN,
    "TRL, rows of like length, chunked loss": CHUNKED,
    "TRL, rows of like length, chunked loss, 4 at a time": CHUNKED | FOURS,
    "TRL, packed": PLAIN | {"packing": True},
}

LLAMA_FACTORY = "LLaMA-Factory 0.9.5, defaults"

# Qwen2.5's, but for the vocabulary's meaning.
SHAPES: dict[str, dict[str, Any]] = {
    "0.5b": {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14,
             "num_key_value_heads": 2, "vocab_size": 151936, "tie_word_embeddings": True},
    "7b": {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28,
           "num_key_value_heads": 4, "vocab_size": 152064, "tie_word_embeddings": False},
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
    """Seconds of training alone, and the peak of the process's memory, or of the GPU's, in bytes."""

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
    print(f"Matrix products, {options.threads} threads: {peak / 1e9:,.0f} GFLOP/s.\n", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        model = random_model(options.model, SHAPES[options.shape], Path(folder)) if options.shape else options.model
        for kind, (rows, max_length) in kinds.items():
            if rows:
                compare(kind, Work(model, rows, max_length, options.threads), options, peak)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Training speed beside TRL and LLaMA-Factory.")
    parser.add_argument("--rows", type=int, default=1500, help="short rows; 0 leaves them out")
    parser.add_argument("--long-rows", type=int, default=64, help="long rows; 0 leaves them out")
    parser.add_argument("--rounds", type=int, default=2, help="of all contenders; of each its quickest run counts")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of every contender")
    parser.add_argument("--data", type=Path, default=SHARED / "data/reviews_zh/train.jsonl", help="the reviews")
    parser.add_argument("--book", type=Path, default=SHARED / "data/corpus_clear/wizard_of_oz_gutenberg.txt")
    parser.add_argument("--model", type=Path, default=SHARED / "models/reviews-base", help="the base model's folder")
    parser.add_argument("--shape", choices=SHAPES, help="instead of the model's weights random ones of this shape")
    parser.add_argument(
        "--without", nargs="*", choices=[*TRL, LLAMA_FACTORY], default=[], help="contenders to leave out"
    )
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


def random_model(tokenizer: Path, shape: dict[str, Any], folder: Path) -> Path:
    """Writes a model of the shape in bfloat16, with random weights and this folder's tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2Config

    own = AutoTokenizer.from_pretrained(tokenizer)
    config = Qwen2Config(**shape, eos_token_id=own.eos_token_id, pad_token_id=own.pad_token_id)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    own.save_pretrained(folder)
    return folder


def matrix_products(threads: int) -> float:
    """Operations a second of matrix products, the best of several, in whichever of bfloat16 and fp32 is quicker."""
    import torch

    torch.set_num_threads(threads)
    on_gpu = torch.cuda.is_available()
    size, best = 8192 if on_gpu else 2048, 0.0
    for dtype in (torch.float32, torch.bfloat16):
        a, b = (torch.randn(size, size, dtype=dtype, device="cuda" if on_gpu else "cpu") for _ in range(2))
        for _ in range(20):
            began = time.perf_counter()
            a @ b
            if on_gpu:
                torch.cuda.synchronize()
            took = time.perf_counter() - began
            best = max(best, 2 * size**3 / took)
            if took > 1:  # a CPU that has no bfloat16
                break
    return best


def compare(kind: str, work: Work, options: argparse.Namespace, peak: float) -> None:
    contenders: dict[str, Callable[[Path], Measured | None]] = {"Burnish": lambda folder: ours(work, folder)}
    contenders |= {name: lambda folder, s=settings: trl(work, s, folder) for name, settings in TRL.items()}
    if options.llamafactory:
        contenders[LLAMA_FACTORY] = lambda folder: llama_factory(work, options.llamafactory, folder)
    tokens, parameters = counted(work)
    print(f"{len(work.rows):,} {kind} rows, {tokens:,} tokens, {tokens / len(work.rows):.0f} a row\n")
    quickest: dict[str, Measured | None] = {}
    for _ in range(options.rounds):
        for name, run in contenders.items():
            if name in options.without:
                continue
            with tempfile.TemporaryDirectory() as folder:
                found = run(Path(folder))
            print(f"{name}: {f'{found.seconds:.1f} s' if found else 'out of memory'}", file=sys.stderr, flush=True)
            before = quickest.get(name)
            quickest[name] = found if before is None or (found and found.seconds < before.seconds) else before
    own = quickest["Burnish"]
    print("| | useful tokens/s | ours is | of the matrix products | peak memory |\n|---|---|---|---|---|")
    for name, best in quickest.items():
        if best is None:
            print(f"| {name} | out of memory | | | |")
            continue
        rate = tokens / best.seconds
        # LoRA needs the gradient of what passes through a weight, and not that of the weight: 4 operations, not 6.
        share = 4 * parameters * rate / peak
        ratio = f"{best.seconds / own.seconds:.1f} ×" if own else ""
        print(f"| {name} | {rate:,.0f} | {ratio} | {share:.0%} | {best.peak / 2**20:,.0f} MiB |")
    print(flush=True)


def counted(work: Work) -> tuple[int, int]:
    """The rows' tokens, cut as all cut them, and the model's parameters that multiply, embeddings apart."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(work.model)
    texts = [tokenizer.apply_chat_template(messages(row), tokenize=False) for row in work.rows]
    tokens = sum(min(len(ids), work.max_length) for ids in tokenizer(texts).input_ids)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(work.model))
    return tokens, model.num_parameters() - model.get_input_embeddings().weight.numel()


def messages(row: Row) -> list[dict[str, str]]:
    return [{"role": "user", "content": row["instruction"]}, {"role": "assistant", "content": row["output"]}]


def process(command: list[str], environment: dict[str, str], log: Path) -> int | None:
    """Runs it to its end; its peak memory in bytes, None where that ran out."""
    import torch

    def free() -> int:
        return torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else 0

    at_first = least = free()
    with log.open("wb") as written:
        started = subprocess.Popen(
            command, cwd=REPOSITORY, env=os.environ | environment, stdout=written, stderr=subprocess.STDOUT
        )
        ended = 0
        while not ended:
            time.sleep(0.02)
            least = min(least, free())
            ended, status, used = os.wait4(started.pid, os.WNOHANG)
    if status:
        said = log.read_text(errors="replace")
        if re.search("OutOfMemoryError|out of memory", said):
            return None
        sys.exit(f"{command}:\n{said[-3000:]}")
    return at_first - least if torch.cuda.is_available() else used.ru_maxrss * 1024


def is_on_cpu() -> bool:
    import torch

    return not torch.cuda.is_available()


def threads_of(work: Work) -> dict[str, str]:
    one_gpu = {"CUDA_VISIBLE_DEVICES": "0"}  # else contenders would spread over all that there are
    return one_gpu | {"OMP_NUM_THREADS": str(work.threads), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "true"}


def ours(work: Work, folder: Path) -> Measured | None:
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
    if peak is None:
        return None
    last = next(
        json.loads(line) for line in (folder / "log").read_text().splitlines() if line.startswith('{"type": "finished"')
    )
    return Measured(last["training_seconds"], peak)


def trl(work: Work, settings: dict[str, Any], folder: Path) -> Measured | None:
    told = {
        "model": str(work.model), "rows": work.rows, "max_length": work.max_length, "settings": settings,
        "out": str(folder / "out"), "threads": work.threads,
    }  # fmt: skip
    (folder / "told.json").write_text(json.dumps(told))
    peak = process([sys.executable, __file__, "--trl", str(folder / "told.json")], threads_of(work), folder / "log")
    return None if peak is None else Measured(json.loads((folder / "out/seconds.json").read_text()), peak)


def train_with_trl(told: dict[str, Any]) -> None:
    """TRL's process: trains, and writes the seconds."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer

    from worker.trainer.precision import computes_bf16

    torch.set_num_threads(told["threads"])
    rows = [{"prompt": messages(row)[:1], "completion": messages(row)[1:]} for row in told["rows"]]
    settings = {"per_device_train_batch_size": BATCH} | told["settings"]
    arguments = SFTConfig(
        output_dir=told["out"], use_cpu=is_on_cpu(), bf16=computes_bf16(), num_train_epochs=1, learning_rate=LEARNING_RATE,
        max_length=told["max_length"], report_to="none", save_strategy="no", **settings,
    )  # fmt: skip
    adapter = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", task_type="CAUSAL_LM")
    trainer = SFTTrainer(told["model"], arguments, train_dataset=Dataset.from_list(rows), peft_config=adapter)
    found = trainer.train()
    Path(told["out"]).mkdir(exist_ok=True)
    (Path(told["out"]) / "seconds.json").write_text(json.dumps(found.metrics["train_runtime"]))


def llama_factory(work: Work, environment: Path, folder: Path) -> Measured | None:
    (folder / "rows.json").write_text(json.dumps([row | {"input": ""} for row in work.rows]))  # a column that it wants
    (folder / "dataset_info.json").write_text(json.dumps({"rows": {"file_name": "rows.json"}}))
    (folder / "torchaudio").mkdir()  # imported at its start, and not needed
    (folder / "torchaudio/__init__.py").touch()
    settings = {
        "model_name_or_path": str(work.model), "stage": "sft", "do_train": True, "finetuning_type": "lora", "lora_rank": RANK,
        "lora_target": "all", "dataset": "rows", "dataset_dir": str(folder), "template": "qwen", "output_dir": str(folder / "out"),
        "per_device_train_batch_size": BATCH, "num_train_epochs": 1, "learning_rate": LEARNING_RATE, "use_cpu": is_on_cpu(),
        "report_to": "none", "cutoff_len": work.max_length, "save_strategy": "no",
    }  # fmt: skip
    (folder / "job.yaml").write_text(json.dumps(settings))  # which is YAML too
    command = [str(environment / "bin/llamafactory-cli"), "train", str(folder / "job.yaml")]
    peak = process(command, threads_of(work) | {"PYTHONPATH": str(folder)}, folder / "log")
    if peak is None:
        return None
    return Measured(json.loads((folder / "out/train_results.json").read_text())["train_runtime"], peak)


if __name__ == "__main__":
    main()
