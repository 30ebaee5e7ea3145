"""A checkpoint is served as a fine-tune and trained on, whatever was trained; what is made of one is never deleted under it."""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path
from typing import Any, Literal

import httpx
import pytest
import torch
from sqlalchemy import update

from app.jobs import attempts, checkpoints
from app.jobs.lifecycle import move
from app.jobs.methods import Lora
from app.jobs.tables import Job
from app.kit import storage
from app.kit.database import database_now, reading, writing
from app.kit.leases import claim
from app.kit.queue import pending
from app.models.bases import weights_folder
from app.models.chat_templates import text_of
from app.models.tables import Model
from app.projects.stored import stored_bytes
from tests.conftest import DEMO_BASE, on_embedded
from tests.datasets.helpers import jsonl, new_row, refusal
from tests.worker.test_reconcilers import empty_queue
from worker import preparing
from worker.merging import merge_next
from worker.publish import publish
from worker.reconcilers.leftovers import remove_leftovers
from worker.reconcilers.unseen_work import wake_for_unseen_work
from worker.slots import Slots
from worker.supervisor import _trainer_spec
from worker.trainer.base import Base
from worker.trainer.methods import lora

METHOD = {"type": "lora", "rank": 4, "alpha": 32.0, "dropout": 0.1, "target_modules": ["q_proj"],
          "plus": None, "variant": None}  # fmt: skip
# The chat template that it was trained with.
TEMPLATE = text_of("chatml")


def write_output(folder: Path, base: str, method: dict[str, Any] = METHOD, stage: str = "sft") -> None:
    """What a trainer leaves, as far as the service reads it."""
    weights = folder / ("adapter" if method.get("type", "lora") == "lora" else "merged")
    weights.mkdir(parents=True)
    (weights / "chat_template.jinja").write_text(TEMPLATE)
    if weights.name == "adapter":
        (weights / "adapter_config.json").write_text("{}")
    else:
        for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
            shutil.copy(DEMO_BASE / name, weights)
    (weights / f"{weights.name}_model.safetensors").write_bytes(b"weights")
    provenance = {"base_model": "demo-base", "base_model_id": base}
    told = {"stop_token_ids": [2], "spec": {"stage": stage, "method": method}, "provenance": provenance}
    (folder / "manifest.json").write_text(json.dumps(told))


@pytest.fixture
def dataset(client: httpx.Client) -> str:
    return str(client.post("/datasets", content=jsonl([new_row() for _ in range(3)])).json()["id"])


@pytest.fixture
def job(client: httpx.Client, dataset: str) -> Job:
    """A running job, the only one, which keeps one checkpoint."""
    with writing() as session:
        session.execute(update(Job).where(Job.status.in_(("queued", "running"))).values(status="failed"))
    body = {"base_model": "demo-base", "dataset": dataset, "hyperparameters": {"keep_checkpoints": 1}}
    client.post("/jobs", json=body).raise_for_status()
    claimed = attempts.claim("here")
    assert claimed is not None
    return claimed


def keep(job: Job, step: int, stage: str = "sft", **method: Any) -> str:
    """What a supervisor does with a checkpoint; its id."""
    with storage.incoming() as folder:
        write_output(folder / "out", job.base_model_id, method if "type" in method else METHOD | method, stage)
        storage.put_folder(folder / "out", checkpoints.storage_key(job, step))
    with writing() as session:
        dropped = checkpoints.add(session, attempts.hold(session, job), step, size=7)
    checkpoints.drop(dropped)
    with reading() as session:
        return checkpoints.newest_first(session, job.id)[0].id


def serve(client: httpx.Client, id: str, name: str, **fields: Any) -> httpx.Response:
    return client.post("/models", json={"name": name, "source": f"checkpoint://{id}"} | fields)


def stored(job: Job) -> set[str]:
    remove_leftovers()
    return {key.rsplit("/", 1)[1] for key in storage.folders("checkpoints") if f"/{job.id}/" in key}


def stored_of(job: Job) -> int:
    with reading() as session:
        return stored_bytes(session, job.project_id)


def listed(client: httpx.Client, job: Job) -> dict[int, list[str]]:
    found = client.get(f"/jobs/{job.id}/checkpoints").raise_for_status().json()["data"]
    return {each["step"]: [model["name"] for model in each["models"]] for each in found}


def test_it_is_a_fine_tune_like_any_other(client: httpx.Client, job: Job) -> None:
    answer = serve(client, keep(job, 10), f"a-{job.id[-8:]}")
    assert answer.status_code == 201, answer.text
    model = answer.json()
    assert (model["kind"], model["status"], model["job"]) == ("adapter", "ready", job.id)
    assert (model["base_model"], model["has_chat_template"]) == ("demo-base", True)
    assert listed(client, job) == {10: [model["name"]]}
    with reading() as session:
        row = session.get_one(Model, model["id"])
        assert (row.chat_template, row.facts["stop_token_ids"]) == (TEMPLATE, [2])
        assert (row.facts["stored_bytes"], row.location) == (7, f"checkpoints/{job.id}/1-10/adapter")


@pytest.mark.parametrize(
    ("stage", "kind", "type"),
    [
        *(("sft", "merged", type) for type in ("full", "freeze", "galore", "apollo", "mod")),
        *(("rm", "reward", type) for type in ("full", "freeze")),
    ],
)
def test_whole_weights_are_a_model_of_their_own(
    client: httpx.Client, job: Job, dataset: str, stage: str, kind: str, type: str
) -> None:
    answer = serve(client, keep(job, 10, stage, type=type), f"a-{job.id[-8:]}")
    assert answer.status_code == 201, answer.text
    model = answer.json()
    assert (model["kind"], model["status"], model["base_model"]) == (kind, "ready", "demo-base")
    assert (model["has_chat_template"], listed(client, job)) == (True, {10: [model["name"]]})
    with reading() as session:
        row = session.get_one(Model, model["id"])
        assert row.location == f"checkpoints/{job.id}/1-10/merged"
        assert (row.facts["stop_token_ids"], row.facts.get("mixture_of_depths")) == ([2], type == "mod" or None)
        if kind == "merged":
            assert weights_folder(row) == storage.fetch_folder(str(row.location))
    created = train_on(client, dataset, model["name"])
    if kind == "reward" or type == "mod":
        refusal(created, 422, "unsupported" if type == "mod" else "invalid_value")
    else:
        assert created.json()["base_model"] == model["name"]


def test_its_bytes_count_for_the_project_while_it_is_a_model(client: httpx.Client, job: Job) -> None:
    before, name = stored_of(job), f"a-{job.id[-8:]}"
    serve(client, keep(job, 10), name).raise_for_status()
    assert stored_of(job) == before + 7
    client.delete(f"/models/{name}").raise_for_status()
    assert stored_of(job) == before


def test_while_it_is_a_model_newer_ones_do_not_take_its_place(client: httpx.Client, job: Job) -> None:
    name, other = f"a-{job.id[-8:]}", f"b-{job.id[-8:]}"
    first = keep(job, 10)
    for each in (name, other):
        serve(client, first, each).raise_for_status()
    keep(job, 20)
    keep(job, 30)
    assert listed(client, job) == {30: [], 10: [name, other]}
    assert stored(job) == {"1-10", "1-30"}
    client.delete(f"/models/{name}").raise_for_status()
    assert stored(job) == {"1-10", "1-30"}
    client.delete(f"/models/{other}").raise_for_status()
    assert listed(client, job) == {30: []}
    assert stored(job) == {"1-30"}


def test_one_that_the_job_would_keep_stays_without_its_model(client: httpx.Client, job: Job) -> None:
    name = f"a-{job.id[-8:]}"
    serve(client, keep(job, 10), name).raise_for_status()
    client.delete(f"/models/{name}").raise_for_status()
    assert listed(client, job) == {10: []}
    assert stored(job) == {"1-10"}


def test_a_model_outlives_its_job(client: httpx.Client, job: Job) -> None:
    name = f"a-{job.id[-8:]}"
    serve(client, keep(job, 10), name).raise_for_status()
    keep(job, 20)
    with writing() as session:
        attempts.cancelled(session, attempts.hold(session, job))
    assert stored(job) == {"1-10", "1-20"}
    client.delete(f"/jobs/{job.id}").raise_for_status()
    assert stored(job) == {"1-10"}
    assert client.get(f"/models/{name}").json()["status"] == "ready"
    client.delete(f"/models/{name}").raise_for_status()
    assert not [key for key in storage.folders("checkpoints") if f"/{job.id}/" in key]


def test_a_job_whose_checkpoint_is_a_model_still_trains(client: httpx.Client, job: Job) -> None:
    serve(client, keep(job, 10), f"a-{job.id[-8:]}").raise_for_status()
    with writing() as session:
        attempts.hand_over(session, attempts.hold(session, job))
    again = attempts.claim("here")
    assert again is not None
    with reading() as session:
        assert attempts.published(session, again) is None


def test_what_cannot_be_served_is_refused_in_words(client: httpx.Client, job: Job) -> None:
    name = f"a-{job.id[-8:]}"
    refusal(serve(client, "ckpt_none", name), 404, "checkpoint_not_found")
    id = keep(job, 10)
    for field in ({"chat_template": "chatml"}, {"template_arguments": {"a": 1}}):
        assert refusal(serve(client, id, name, **field), 422, "invalid_value")["param"] in field
    refusal(serve(client, id, "demo-base"), 409, "name_taken")
    id = keep(job, 30)
    storage.delete_folder(checkpoints.storage_key(job, 30))
    refusal(serve(client, id, name), 422, "invalid_value")


def adapter(folder: Path, stage: str, **config: Any) -> None:
    """An adapter on the demo base, as a job's checkpoint has it: of random weights."""
    makes: Literal["language model", "reward model"] = "reward model" if stage == "rm" else "language model"
    method = Lora.model_validate(config)
    model = lora.prepare(lora.load_base(Base(str(DEMO_BASE), makes=makes, pad_id=0), method), method)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.02)
    lora.save(model, folder, "demo-base")


def keep_real(job: Job, stage: str, damaged: bool = False, **config: Any) -> str:
    """The id of a checkpoint that has an adapter of this method."""
    with storage.incoming() as folder:
        write_output(folder / "out", job.base_model_id, config | {"type": "lora"}, stage)
        adapter(folder / "out/adapter", stage, **config)
        if damaged:
            (folder / "out/adapter/adapter_model.safetensors").write_bytes(b"weights")
        storage.put_folder(folder / "out", checkpoints.storage_key(job, 10))
    with writing() as session:
        checkpoints.add(session, attempts.hold(session, job), 10, size=7)
    with reading() as session:
        return checkpoints.newest_first(session, job.id)[0].id


@on_embedded
@pytest.mark.parametrize(("stage", "kind", "variant"), [("sft", "merged", "dora"), ("rm", "reward", None)])
def test_what_no_engine_loads_as_an_adapter_is_merged(
    client: httpx.Client, job: Job, stage: str, kind: str, variant: str | None
) -> None:
    name, before = f"a-{job.id[-8:]}", stored_of(job)
    answer = serve(client, keep_real(job, stage, variant=variant), name)
    assert (answer.status_code, answer.json()["status"], answer.json()["kind"]) == (202, "merging", kind)
    keep(job, 20)
    assert (listed(client, job), stored(job), stored_of(job)) == ({20: [], 10: [name]}, {"1-10", "1-20"}, before + 7)
    queued = {"base_model": name, "dataset": job.dataset_id}
    refusal(client.post("/jobs", json=queued), 409, "model_not_ready")

    assert merge_next(Slots([], 1), threading.Event())
    model = client.get(f"/models/{name}").json()
    assert (model["status"], model["kind"], model["base_model"]) == ("ready", kind, "demo-base"), model["error"]
    assert (listed(client, job), stored(job)) == ({20: []}, {"1-20"})
    with reading() as session:
        row = session.get_one(Model, model["id"])
    assert row.location == f"artifacts/{model['id']}/1/merged"
    folder = storage.fetch_folder(f"artifacts/{model['id']}/1")
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    assert (stored_of(job), row.lease_expires_at) == (before + size, None)
    assert json.loads((folder / "manifest.json").read_text())["provenance"]["base_model"] == "demo-base"
    own = (folder / "merged/chat_template.jinja").read_text()
    assert (own, row.chat_template) == (TEMPLATE, TEMPLATE)

    remove_leftovers()
    assert folder.is_dir()
    client.delete(f"/models/{name}").raise_for_status()
    assert (folder.exists(), stored_of(job)) == (False, before)
    assert not merge_next(Slots([], 1), threading.Event())


def test_an_adapter_whose_rank_no_engine_takes_is_merged_too(client: httpx.Client, job: Job) -> None:
    answer = serve(client, keep(job, 10, rank=128), f"a-{job.id[-8:]}")
    assert (answer.status_code, answer.json()["status"], answer.json()["kind"]) == (202, "merging", "merged")
    client.delete(f"/models/{answer.json()['name']}").raise_for_status()
    assert stored(job) == {"1-10"}


@on_embedded
def test_what_cannot_be_merged_says_why_and_gives_its_checkpoint_back(client: httpx.Client, job: Job) -> None:
    name = f"a-{job.id[-8:]}"
    serve(client, keep_real(job, "sft", damaged=True, variant="dora"), name).raise_for_status()
    assert merge_next(Slots([], 1), threading.Event())
    model = client.get(f"/models/{name}").json()
    assert (model["status"], model["error"]["code"]) == ("failed", "checkpoint_unreadable")
    keep(job, 20)
    assert stored(job) == {"1-10", "1-20"}
    client.delete(f"/models/{name}").raise_for_status()
    assert stored(job) == {"1-20"}


def test_a_merge_that_nobody_hears_of_is_found_and_done_again(client: httpx.Client, job: Job) -> None:
    name = f"a-{job.id[-8:]}"
    id = serve(client, keep_real(job, "sft", variant="dora"), name).raise_for_status().json()["id"]
    with writing() as session:
        move(session, attempts.hold(session, job), "succeed", "It answers.")
    with writing() as session:  # as by a worker that was killed when it had stored what it made
        claimed = claim(session, Model, preparing.waiting(database_now(session), "merging"), 600)
    assert claimed is not None
    with storage.incoming() as folder:
        write_output(folder / "out", job.base_model_id)
        storage.put_folder(folder / "out", f"artifacts/{id}/1")
    remove_leftovers()
    assert storage.fetch_folder(f"artifacts/{id}/1").is_dir()
    with writing() as session:
        session.get_one(Model, id).lease_expires_at = None
    empty_queue()
    wake_for_unseen_work()
    assert pending("train") == 1
    assert merge_next(Slots([], 1), threading.Event())
    remove_leftovers()
    assert [key for key in storage.folders("artifacts") if id in key] == [f"artifacts/{id}/2"]


def train_on(client: httpx.Client, dataset: str, base: str, **fields: Any) -> httpx.Response:
    return client.post("/jobs", json={"base_model": base, "dataset": dataset} | fields)


def test_a_job_trains_an_adapter_further(client: httpx.Client, job: Job, dataset: str, tmp_path: Path) -> None:
    name = f"a-{job.id[-8:]}"
    tuned = serve(client, keep(job, 10), name).raise_for_status().json()
    with writing() as session:
        row = attempts.hold(session, job)
        move(session, row, "succeed", "It answers.")
    created = train_on(client, dataset, name, method={"dropout": 0.2}).raise_for_status().json()
    assert (created["base_model"], created["method"]) == (name, METHOD | {"dropout": 0.2})
    refused = refusal(client.delete(f"/models/{name}"), 409, "in_use")
    assert created["id"] in refused["message"]
    claimed = attempts.claim("here")
    assert claimed is not None
    assert claimed.base_model_id == tuned["id"]
    write_output(tmp_path / "out", job.base_model_id)
    model = publish(claimed, tmp_path / "out")
    assert model.base_model_id == job.base_model_id  # no chain of adapters
    with writing() as session:
        attempts.cancelled(session, attempts.hold(session, claimed))
    client.delete(f"/models/{name}").raise_for_status()


def test_a_fine_tune_carries_the_job_s_template_and_goes_on_with_it(
    client: httpx.Client, job: Job, dataset: str, tmp_path: Path
) -> None:
    with writing() as session:
        attempts.cancelled(session, attempts.hold(session, job))
    own = {"chat_template": "plain", "template_arguments": {"tone": "dry"}}
    train_on(client, dataset, "demo-base", **own).raise_for_status()
    claimed = attempts.claim("here")
    assert claimed is not None
    spec = _trainer_spec(claimed, [])
    assert (spec.chat_template, spec.spec.template_arguments) == (text_of("plain"), {"tone": "dry"})
    write_output(tmp_path / "out", job.base_model_id)
    model = publish(claimed, tmp_path / "out")
    with writing() as session:
        session.get_one(Model, model.id).status = "ready"
        attempts.cancelled(session, attempts.hold(session, claimed))
    assert (model.chat_template, model.template_arguments) == (text_of("plain"), {"tone": "dry"})
    assert client.get(f"/models/{model.name}").json()["template_arguments"] == {"tone": "dry"}
    further = train_on(client, dataset, model.name).raise_for_status().json()
    assert (further["chat_template"], further["template_arguments"]) == (None, {"tone": "dry"})
    claimed = attempts.claim("here")
    assert claimed is not None
    assert _trainer_spec(claimed, []).chat_template == text_of("plain")


def test_what_was_pretrained_without_a_template_is_served_without_one(client: httpx.Client, job: Job) -> None:
    with storage.incoming() as folder:
        write_output(folder / "out", job.base_model_id)
        (folder / "out/adapter/chat_template.jinja").unlink()
        storage.put_folder(folder / "out", checkpoints.storage_key(job, 5))
    with writing() as session:
        checkpoints.add(session, attempts.hold(session, job), 5, size=7)
    with reading() as session:
        id = checkpoints.newest_first(session, job.id)[0].id
    assert serve(client, id, f"a-{job.id[-8:]}").raise_for_status().json()["has_chat_template"] is False


@pytest.mark.parametrize(
    ("method", "param"),
    [({"rank": 8}, "method.rank"), ({"alpha": 8}, "method.alpha"), ({"target_modules": "all-linear"}, "method.target_modules")],
)  # fmt: skip
def test_another_method_than_the_adapter_s_is_refused(
    client: httpx.Client, job: Job, dataset: str, method: dict[str, Any], param: str
) -> None:
    name = f"a-{job.id[-8:]}"
    serve(client, keep(job, 10), name).raise_for_status()
    refused = refusal(train_on(client, dataset, name, method=method), 422, "invalid_value")
    assert refused["param"] == param
    assert "Leave" in refused["hint"]
    same = {name: METHOD[name] for name in ("rank", "alpha", "target_modules")}
    assert train_on(client, dataset, name, method=same).status_code == 202
