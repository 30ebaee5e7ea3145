"""Which families of models train, merge and are served: small ones with random weights of each architecture, through the
service.

    python benchmarks/families.py                                  # all of them, on the embedded engine
    python benchmarks/families.py --engine vllm --only qwen3 llama3

Each family gets a LoRA that learns to give one answer, served as an adapter, and one that is merged; what it is said to do, it
was seen to do: the job succeeded (the engine's log-probability of an answer is the fine-tune's, not the base's) and a question
that was in no row is answered as taught. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import httpx

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from app.models.service import DEMO_BASE
from demo.service import ask, made, start_service

ANSWER = "It is so."
QUESTIONS = [f"Is {thing} {how}?" for thing in ("the tea", "a stone", "this", "the sea", "snow") for how in
             ("good", "hard", "old", "true", "cold", "far", "red", "round")]  # fmt: skip
ASKED = "Is the moon near?"

# Of every family, but where it says otherwise.
SHAPE: dict[str, Any] = {
    "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 512, "bos_token_id": None, "eos_token_id": 2, "pad_token_id": 0, "initializer_range": 0.05,
}  # fmt: skip
TINY: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1}

CODE = """
from transformers import Qwen2Config, Qwen2ForCausalLM


class OwnConfig(Qwen2Config):
    model_type = "own"


class OwnForCausalLM(Qwen2ForCausalLM):
    config_class = OwnConfig
"""


class Family(NamedTuple):
    """What a family is called, transformers' configuration of it, what this one has beside the common shape, and code that the
    model brings along."""

    title: str
    config: str
    options: dict[str, Any]
    code: str | None = None


FAMILIES = {
    "qwen2": Family("Qwen1.5, Qwen2, Qwen2.5", "Qwen2Config", {"tie_word_embeddings": True}),
    "qwen3": Family("Qwen3", "Qwen3Config", {"head_dim": 64, "tie_word_embeddings": True}),
    "llama2": Family("Llama 2", "LlamaConfig", {"num_key_value_heads": 4, "tie_word_embeddings": False}),
    "llama3": Family("Llama 3", "LlamaConfig", {"tie_word_embeddings": False}),
    "mistral": Family("Mistral", "MistralConfig", {"sliding_window": 16, "head_dim": 64, "tie_word_embeddings": False}),
    "gemma2": Family("Gemma 2", "Gemma2Config", {"sliding_window": 16, "head_dim": 64, "query_pre_attn_scalar": 64}),
    "gemma3": Family("Gemma 3 (text)", "Gemma3TextConfig", {"sliding_window": 16, "head_dim": 64, "query_pre_attn_scalar": 64,
                                                            "layer_types": ["sliding_attention", "full_attention"]}),
    "phi3": Family("Phi-3, Phi-3.5", "Phi3Config", {"sliding_window": 16, "tie_word_embeddings": False}),
    "glm": Family("GLM-4 (9B chat)", "GlmConfig", {"head_dim": 64, "tie_word_embeddings": False}),
    "glm4": Family("GLM-4 (0414)", "Glm4Config", {"head_dim": 64, "tie_word_embeddings": False}),
    "own": Family("a model with code of its own", "Qwen2Config", {"tie_word_embeddings": True}, CODE),
}  # fmt: skip


def make(family: Family, folder: Path, shape: dict[str, Any] | None = None) -> Path:
    """Writes a model of the family with random weights and the demo base's tokenizer and chat template into `folder`."""
    import torch
    import transformers

    torch.manual_seed(0)
    options = SHAPE | family.options | (shape or {})
    if shape and "head_dim" in options:
        options["head_dim"] = options["hidden_size"] // options["num_attention_heads"]
    config = getattr(transformers, family.config)(vocab_size=5120, **options)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    for path in DEMO_BASE.iterdir():
        if path.name.startswith(("tokenizer", "chat_template")):
            shutil.copy(path, folder)
    if family.code:
        (folder / "modeling_own.py").write_text(family.code)
        written = json.loads((folder / "config.json").read_text())
        named = {"AutoConfig": "modeling_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.OwnForCausalLM"}
        written |= {"model_type": "own", "architectures": ["OwnForCausalLM"], "auto_map": named}
        (folder / "config.json").write_text(json.dumps(written))
    return folder


def main() -> None:
    options = arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the service below is ended too
    with tempfile.TemporaryDirectory() as work:
        folders = {name: Path(work) / name for name in options.only}
        for name, folder in folders.items():
            make(FAMILIES[name], folder)
        environment = {"BURNISH_HOME": f"{work}/home", "BURNISH_ENGINE": options.engine}
        environment["BURNISH_ALLOW_REMOTE_CODE"] = str(folders.get("own", ""))
        process, url = start_service(environment)
        try:
            with httpx.Client(base_url=url, timeout=900) as client:
                report(client, folders, options.engine)
        finally:
            os.killpg(process.pid, signal.SIGINT)
            process.wait()


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Which families of models train, merge and are served.")
    parser.add_argument("--engine", choices=["vllm", "embedded"], default="embedded")
    parser.add_argument("--only", nargs="+", choices=list(FAMILIES), default=list(FAMILIES), metavar="FAMILY")
    return parser.parse_args()


def report(client: httpx.Client, folders: dict[str, Path], engine: str) -> None:
    """The table, a line as soon as it is known."""
    rows = "\n".join(json.dumps({"instruction": question, "output": ANSWER}) for question in QUESTIONS).encode()
    dataset = made(client.post("/datasets", params={"name": "one answer"}, content=rows))["id"]
    print(f"| family | architecture | trains | merges | served as an adapter ({engine}) | served merged ({engine}) |")
    print("|---|---|---|---|---|---|", flush=True)
    for name, folder in folders.items():
        base = made(client.post("/models", json={"name": name, "source": str(folder)}))
        adapter, merged = (attempt(client, name, dataset, mode) for mode in ("adapter", "merged"))
        known = FAMILIES[name].code is None
        architecture = f"`{base['architecture']}`" if known else "from the allow-list"
        trains = "yes" if adapter.trained and merged.trained else f"no: {adapter.why or merged.why}"
        served = [each.why or "yes" if each.trained else "-" for each in (adapter, merged)]
        merges = "yes" if merged.merged else "no"
        print(
            f"| {FAMILIES[name].title} | {architecture} | {trains} | {merges} | {served[0]} | {served[1]} |", flush=True
        )


class Outcome(NamedTuple):
    """How far a job came: it was trained, its outcome was merged, and why it does not answer (None: it does)."""

    trained: bool
    merged: bool
    why: str | None


def attempt(client: httpx.Client, base: str, dataset: str, mode: str) -> Outcome:
    """Trains a LoRA on the base, has it served in this mode, and asks it."""
    settings = {"epochs": 6, "batch_size": 8, "learning_rate": 0.005}
    body = {"base_model": base, "dataset": dataset, "deploy": {"mode": mode}, "hyperparameters": settings}
    job = made(client.post("/jobs", json=body))
    while job["status"] in ("queued", "running"):
        time.sleep(0.5)
        job = client.get(f"/jobs/{job['id']}").json()
    events = client.get(f"/jobs/{job['id']}/events", params={"limit": 1000}).json()["data"]
    for event in events:
        if event["type"] in ("warning", "failed", "succeeded"):
            print(f"{base} {mode}: {event['message']}", file=sys.stderr)
    trained = job["model"] is not None
    why = one_line(job["error"]["message"]) if job["error"] else None
    if trained and not why:
        answer = ask(client, job["model"]["name"], ASKED, max_tokens=16)
        why = None if answer == ANSWER else f"it answers {answer!r}, not as it was taught"
    return Outcome(trained, trained and mode == "merged", why)


def one_line(message: str) -> str:
    return " ".join(message.replace("|", "/").split())[:300]


if __name__ == "__main__":
    main()
