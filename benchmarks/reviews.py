"""Accuracy on real product reviews: base model, fine-tune through the service at its defaults, and naive Bayes beside them.

    python benchmarks/reviews.py                    # 3,000 rows, minutes
    python benchmarks/reviews.py --rows 45366       # all of them

Needs the reviews (`--data`) and a base model that never saw a label (`--model`); see the flags. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import signal
import sys
import tempfile
import time
from pathlib import Path

import httpx
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.naive_bayes import MultinomialNB
from sklearn.pipeline import make_pipeline

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from demo.service import ask, ask_all, made, start_service, user_turn

SHARED = Path(__file__).resolve().parent.parent.parent / "shared"


def main() -> None:
    options = arguments()
    train = read(options.data / "train.jsonl", options.rows)
    questions = read(options.data / "validation.jsonl", options.questions)
    bayes = naive_bayes(train, questions)
    print(f"naive Bayes: {bayes:.1%}", file=sys.stderr)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the service below is ended too
    with tempfile.TemporaryDirectory() as home:
        process, url = start_service({"BURNISH_HOME": home, "BURNISH_ENGINE": options.engine})
        try:
            with httpx.Client(base_url=url, timeout=600) as client:
                report(client, options, train, questions, bayes)
        finally:
            os.killpg(process.pid, signal.SIGINT)
            process.wait()


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Accuracy on real product reviews.")
    parser.add_argument("--rows", type=int, default=3000, help="training rows; the file's first ones")
    parser.add_argument("--questions", type=int, default=1500, help="validation rows; the file's first ones")
    parser.add_argument("--engine", choices=["vllm", "embedded"], default="vllm")
    parser.add_argument(
        "--data", type=Path, default=SHARED / "data" / "reviews_zh", help="train.jsonl and validation.jsonl"
    )
    parser.add_argument(
        "--model", type=Path, default=SHARED / "models" / "reviews-base", help="directory of the base model"
    )
    return parser.parse_args()


def read(path: Path, rows: int) -> list[dict[str, str]]:
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in itertools.islice(lines, rows)]


def naive_bayes(train: list[dict[str, str]], questions: list[dict[str, str]]) -> float:
    """Accuracy of character 1- to 3-grams, counted: the baseline that needs no network."""
    model = make_pipeline(CountVectorizer(analyzer="char", ngram_range=(1, 3)), MultinomialNB())
    model.fit([row["input"] for row in train], [row["output"] for row in train])
    return float(model.score([row["input"] for row in questions], [row["output"] for row in questions]))


def report(
    client: httpx.Client,
    options: argparse.Namespace,
    train: list[dict[str, str]],
    questions: list[dict[str, str]],
    bayes: float,
) -> None:
    """The main job by REST, timed, and the table."""
    made(client.post("/models", json={"name": "reviews-base", "source": str(options.model.resolve())}))
    rows = "\n".join(json.dumps(row, ensure_ascii=False) for row in train).encode()
    dataset = made(client.post("/datasets", params={"name": "reviews"}, content=rows))
    ask(client, "reviews-base", "warm", max_tokens=1)  # so that the time below is training's, not the engine's start
    started = time.monotonic()
    job = made(client.post("/jobs", json={"base_model": "reviews-base", "dataset": dataset["id"]}))
    while job["status"] in ("queued", "running"):
        time.sleep(1)
        job = client.get(f"/jobs/{job['id']}").json()
        print(f"\r{job['status']} {job['progress']}", end="", file=sys.stderr)
    if job["status"] != "succeeded":
        sys.exit(f"\nthe job is {job['status']}: {job['error']}")
    seconds = time.monotonic() - started
    steps = job["progress"]["total_steps"]
    print("| | rows | accuracy | |\n|---|---|---|---|")
    print(f"| base | 0 | {accuracy(client, 'reviews-base', questions):.1%} | |")
    fine_tune = accuracy(client, job["model"]["name"], questions)
    print(
        f"| fine-tune | {len(train):,} | **{fine_tune:.1%}** | {steps} steps, {seconds:.0f} s from POST /jobs to an answer |"
    )
    print(f"| naive Bayes | {len(train):,} | {bayes:.1%} | character 1- to 3-grams |")
    print(
        f"\n{len(questions):,} validation rows, {options.engine}; answers that are neither `0` nor `1` count as wrong."
    )


def accuracy(client: httpx.Client, model: str, questions: list[dict[str, str]]) -> float:
    given = ask_all(client, model, [user_turn(row) for row in questions], max_tokens=4)
    return sum(answer.strip() == row["output"] for answer, row in zip(given, questions, strict=True)) / len(questions)


if __name__ == "__main__":
    main()
