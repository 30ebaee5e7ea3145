"""Every stage and every method by the road of the main job: posted, trained, deployed with the proof that it is what answers."""

from __future__ import annotations

import json
import shutil
from functools import partial
from typing import Any

import pytest

from demo.service import user_turn
from demo.text import sample_rows
from tests.conftest import DEMO_BASE, THOROUGH, eventually
from tests.system.service import LOOK_SECONDS, Service

STEPS = {"max_steps": 20, "batch_size": 8, "learning_rate": 0.003}
# What the row is called → the kind of its rows, what it says in its job, the kind of the model that it makes.
TABLE: dict[str, tuple[str, dict[str, Any], str]] = {
    "pt": ("text", {"stage": "pt", "hyperparameters": STEPS}, "adapter"),
    "random": (
        "text",
        {
            "stage": "pt",
            "method": {"type": "full"},
            "hyperparameters": STEPS | {"initial_weights": "random"},
            "base_model": "architecture",
        },
        "merged",
    ),
    "dpo": ("preference", {"stage": "dpo", "hyperparameters": STEPS}, "adapter"),
    "kto": ("labels", {"stage": "kto", "hyperparameters": STEPS}, "adapter"),
    "pissa": ("chat", {"method": {"variant": "pissa"}, "hyperparameters": STEPS}, "adapter"),
    "rslora": ("chat", {"method": {"variant": "rslora"}, "hyperparameters": STEPS}, "adapter"),
    "rm": ("preference", {"stage": "rm", "hyperparameters": STEPS}, "reward"),
    "qlora": ("chat", {"method": {"type": "qlora"}, "hyperparameters": STEPS}, "adapter"),
    "dora": ("chat", {"method": {"variant": "dora"}, "hyperparameters": STEPS}, "merged"),
    "freeze": ("chat", {"method": {"type": "freeze"}, "hyperparameters": STEPS}, "merged"),
    "full": ("chat", {"method": {"type": "full"}, "hyperparameters": STEPS | {"learning_rate": 0.001}}, "merged"),
    "galore": ("chat", {"method": {"type": "galore"}, "hyperparameters": STEPS | {"learning_rate": 0.001}}, "merged"),
    "mod": ("chat", {"method": {"type": "mod"}, "hyperparameters": STEPS | {"learning_rate": 0.001}}, "merged"),
    "apollo": ("chat", {"method": {"type": "apollo"}, "hyperparameters": STEPS | {"learning_rate": 0.001}}, "merged"),
}
# Served as others are: `make test-all` has them.
RARELY = ("kto", "rslora", "dora", "freeze", "galore", "apollo")
# vLLM loads what is converted. Weights of their own it loads in test_main_job.py: each takes it the better part of a minute.
ON_VLLM = ("pissa", *(("full", "pt", "dpo", "kto", "rslora", "qlora", "dora", "rm") if THOROUGH else ()))

# What begins with the outcome of another: sft, then rm on it, then rl on the first with the second as reward are three posts.
ON = {"rm": "pissa"}
# The columns that have a reward model.
JUDGED = ("embedded", "production") if "rm" in ON_VLLM else ("embedded",)
# Of whose checkpoints models are made: served where they lie, merged, and served by no engine but ours.
EARLY = ("full", "rm", "mod")
# The columns that have any of them.
CHECKED = ("embedded", "production") if "full" in ON_VLLM else ("embedded",)


@pytest.fixture(scope="module")
def table(running: Service) -> dict[str, tuple[str, dict[str, Any], str]]:
    """What is trained on this column."""
    every = [name for name in TABLE if THOROUGH or name not in RARELY]
    return {name: TABLE[name] for name in (every if running.engine == "embedded" else ON_VLLM)}


@pytest.fixture(scope="module")
def datasets(running: Service) -> dict[str, str]:
    """Ids of datasets, by their kind: the right answer is preferred to another row's."""
    rows = sample_rows(120, seed=1)
    right = [(user_turn(row), row["output"]) for row in rows]
    wrong = [answer for _, answer in right[1:] + right[:1]]
    made: dict[str, list[dict[str, Any]]] = {
        "chat": rows,
        "text": [{"text": row["input"]} for row in rows],
        "preference": [{"prompt": q, "chosen": a, "rejected": w} for (q, a), w in zip(right, wrong, strict=True)],
        "labels": [
            {"prompt": q, "completion": w if i % 2 else a, "label": i % 2 == 0}
            for i, ((q, a), w) in enumerate(zip(right, wrong, strict=True))
        ],
    }
    return {
        kind: running.upload("\n".join(json.dumps(row, ensure_ascii=False) for row in part).encode())
        for kind, part in made.items()
    }


@pytest.fixture(scope="module")
def posted(
    running: Service,
    datasets: dict[str, str],
    table: dict[str, tuple[str, dict[str, Any], str]],
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, str]:
    """Ids of the jobs, which run one after the other."""
    folder = tmp_path_factory.mktemp("models") / "architecture"
    shutil.copytree(DEMO_BASE, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    described = {"name": "architecture", "source": str(folder), "architecture_only": True}
    running.client.post("/models", json=described).raise_for_status()
    made = dict[str, str]()
    for name, (kind, changes, _) in table.items():
        on = {"base_model": running.ended(made[ON[name]])["model"]["name"]} if name in ON else {}
        made[name] = running.create(datasets[kind], **changes | on, name=f"table-{name}")
    return made


@pytest.mark.timeout(1200)  # several jobs
def test_all_of_it_is_trained_and_served(
    running: Service, posted: dict[str, str], table: dict[str, tuple[str, dict[str, Any], str]]
) -> None:
    for name, (_, changes, kind) in table.items():
        job = running.ended(posted[name])
        assert job["status"] == "succeeded", (name, job["error"])
        assert job["deploy"]["mode"] == ("adapter" if kind == "adapter" else "merged"), name
        events = running.client.get(f"/jobs/{job['id']}/events", params={"limit": 1000}).json()["data"]
        said = events[-1]["message"]
        assert "its own weights" in said or "as it was trained to" in said, (name, said)
        metrics = running.client.get(f"/jobs/{job['id']}/metrics").json()["data"]
        first, last = (sum(row["loss"] for row in part) for part in (metrics[:3], metrics[-3:]))
        assert last < 0.9 * first, name
        model = running.client.get(f"/models/{job['model']['name']}").json()
        base = changes.get("base_model", "demo-base")
        assert (model["kind"], model["status"], model["base_model"]) == (kind, "ready", base), name
        assert model["parameters"] > 0, name
        if kind == "reward":
            prefers_right_answers_and_writes_none(running, model["name"])


@pytest.mark.timeout(600)
@pytest.mark.parametrize("running", JUDGED, indirect=True)
def test_what_was_fine_tuned_is_rewarded_by_what_was_trained_to_judge(running: Service, posted: dict[str, str]) -> None:
    fine_tune, judge = (running.ended(posted[name])["model"]["name"] for name in ("pissa", "rm"))
    # Each step has all of the prompts: what is rewarded in one can be compared with what is in another.
    prompts = [{"prompt": user_turn(row), "reference": row["output"]} for row in sample_rows(8, seed=1)]
    settings = {"epochs": 8, "batch_size": 64, "learning_rate": 0.001, "max_new_tokens": 24, "reward": judge}
    id = running.create(
        running.upload("\n".join(json.dumps(row, ensure_ascii=False) for row in prompts).encode()),
        base_model=fine_tune, stage="rl", hyperparameters=settings, name="table-rl",
    )  # fmt: skip
    job = running.ended(id)
    assert job["status"] == "succeeded", job["error"]
    metrics = running.client.get(f"/jobs/{id}/metrics").json()["data"]
    rewards = [row["reward"] for row in metrics]
    assert len(rewards) == 8
    assert min(rewards[-3:]) > max(rewards[:2])
    asked = {
        "model": "table-rl",
        "max_tokens": 24,
        "messages": [{"role": "user", "content": user_turn(sample_rows(1, 9)[0])}],
    }
    answer = running.client.post("/v1/chat/completions", json=asked).raise_for_status().json()
    assert answer["choices"][0]["message"]["content"]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("running", CHECKED, indirect=True)
def test_a_checkpoint_is_served_whatever_was_trained(running: Service, posted: dict[str, str]) -> None:
    row = sample_rows(1, seed=5, split="heldout")[0]
    said = [{"role": "user", "content": user_turn(row)}]
    for name in (name for name in EARLY if name in posted):
        job, early = running.ended(posted[name]), f"early-{name}"
        last = running.client.get(f"/jobs/{job['id']}/checkpoints").json()["data"][0]
        checkpoint = {"name": early, "source": f"checkpoint://{last['id']}"}
        running.client.post("/models", json=checkpoint).raise_for_status()
        eventually(partial(is_ready, running, early), 120, f"a model of the checkpoint of {name}", LOOK_SECONDS)
        kind = TABLE[name][2]
        assert running.client.get(f"/models/{early}").json()["kind"] == kind
        ours, its = (answer_of(running, model, kind, said, row["output"]) for model in (early, job["model"]["name"]))
        assert ours == its, name


def is_ready(running: Service, name: str) -> bool:
    model = running.client.get(f"/models/{name}").json()
    assert model["status"] in ("merging", "ready"), model["error"]
    return bool(model["status"] == "ready")


def answer_of(running: Service, model: str, kind: str, said: list[dict[str, str]], right: str) -> Any:
    """What a model writes, or how it scores the right answer."""
    if kind == "reward":
        asked = {"conversations": [[*said, {"role": "assistant", "content": right}]]}
        return running.client.post(f"/models/{model}/score", json=asked).raise_for_status().json()["data"][0]["score"]
    chat = {"model": model, "messages": said, "max_tokens": 24, "temperature": 0}
    return running.client.post("/v1/chat/completions", json=chat).raise_for_status().json()["choices"]


def prefers_right_answers_and_writes_none(running: Service, name: str) -> None:
    rows = sample_rows(20, seed=5, split="heldout")
    answers = [row["output"] for row in rows]

    def scores(answers: list[str]) -> list[float]:
        asked = [
            [{"role": "user", "content": user_turn(row)}, {"role": "assistant", "content": answer}]
            for row, answer in zip(rows, answers, strict=True)
        ]
        answer = running.client.post(f"/models/{name}/score", json={"conversations": asked}).raise_for_status().json()
        assert answer["model"] == name
        assert answer["usage"]["prompt_tokens"] > 20 * 10
        return [each["score"] for each in answer["data"]]

    right, wrong = scores(answers), scores(answers[1:] + answers[:1])
    assert sum(r > w for r, w in zip(right, wrong, strict=True)) >= 15
    chat = {"model": name, "messages": [{"role": "user", "content": "Hello"}]}
    refused = running.client.post("/v1/chat/completions", json=chat)
    assert (refused.status_code, refused.json()["error"]["hint"]) == (
        422, f"Send conversations to POST /models/{name}/score.",
    )  # fmt: skip
    refused = running.client.post("/models/demo-base/score", json={"conversations": [chat["messages"] * 2]})
    assert (refused.status_code, refused.json()["error"]["param"]) == (422, "name")
    unanswered = {"conversations": [[{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]]}
    refused = running.client.post(f"/models/{name}/score", json=unanswered)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "conversations")
