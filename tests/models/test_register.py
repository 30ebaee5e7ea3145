"""POST /models: a directory is ready at once or refused with what it lacks; names are used once; what is in use stays."""

from __future__ import annotations

import json
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from app.kit.database import DEFAULT_PROJECT, writing
from app.models import service
from app.models.service import register_demo_base
from app.models.tables import Model
from tests.models.own import folder

__all__ = ["folder"]


def register(client: httpx.Client, source: object, **fields: object) -> httpx.Response:
    return client.post("/models", json={"name": f"m-{secrets.token_hex(4)}", "source": str(source)} | fields)


def test_a_directory_is_ready_when_the_call_returns(client: httpx.Client, folder: Path) -> None:
    answer = register(client, folder, metadata={"team": "search"})
    assert answer.status_code == 201, answer.text
    model = answer.json()
    assert (model["status"], model["kind"], model["architecture"]) == ("ready", "base", "Qwen2ForCausalLM")
    assert model["parameters"] > 1_000_000
    assert model["has_chat_template"] is True
    assert client.get(f"/models/{model['name']}").json() == client.get(f"/models/{model['id']}").json() == model


def test_the_demo_base_is_there_from_the_start(client: httpx.Client) -> None:
    assert client.get("/models/demo-base").json()["status"] == "ready"
    assert "demo-base" in [model["id"] for model in client.get("/v1/models").json()["data"]]
    assert client.get("/v1/models/demo-base").json()["object"] == "model"


def test_a_demo_base_with_broken_files_keeps_no_service_from_starting(
    client: httpx.Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "DEMO_BASE", tmp_path)
    monkeypatch.setattr(service, "find", lambda *_: None)  # as in a database that is new
    register_demo_base(DEFAULT_PROJECT)
    monkeypatch.undo()
    assert client.get("/models/demo-base").json()["source"] != str(tmp_path)


def test_the_demo_base_follows_an_installation_that_moved(
    client: httpx.Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = client.get("/models/demo-base").json()
    moved = tmp_path / "demo_base"
    shutil.copytree(service.DEMO_BASE, moved)

    def register_from(folder: Path, location: Path, parameters: int = before["parameters"]) -> str:
        """The source of the demo base after a start from `folder`, of a row whose files were at `location`."""
        with writing() as session:
            model = session.get_one(Model, before["id"])
            model.location, model.facts = str(location), model.facts | {"parameters": parameters}
        with monkeypatch.context() as patch:
            patch.setattr(service, "DEMO_BASE", folder)
            register_demo_base(DEFAULT_PROJECT)
        return str(client.get("/models/demo-base").json()["source"])

    here, gone = service.DEMO_BASE, tmp_path / "gone"
    assert register_from(moved, here) == str(here)
    assert register_from(moved, gone) == str(moved)
    assert register_from(here, gone, parameters=1) == str(moved)  # a model of the user's own by that name
    assert register_from(here, gone) == str(here)
    assert client.get("/models/demo-base").json() == before


def no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def broken_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def no_architecture(folder: Path) -> None:
    (folder / "config.json").write_text("{}")


def no_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def pickled_weights(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def half_a_file(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


SPOILS: list[tuple[Callable[[Path], None], str]] = [
    (no_config, "no config.json"),
    (broken_config, "unreadable config.json"),
    (no_architecture, "architectures"),
    (no_tokenizer, "no tokenizer"),
    (no_weights, "no safetensors"),
    (pickled_weights, "pytorch_model.bin"),
    (half_a_file, "unreadable model.safetensors"),
]


@pytest.mark.parametrize(("spoil", "words"), SPOILS)
def test_a_directory_that_is_no_model_is_refused_with_what_it_lacks(
    client: httpx.Client, folder: Path, spoil: Callable[[Path], None], words: str
) -> None:
    spoil(folder)
    answer = register(client, folder)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (422, "source")
    assert words in error["message"]
    assert error["hint"]


def test_an_architecture_needs_no_weights_and_answers_nothing(client: httpx.Client, folder: Path) -> None:
    with_weights = register(client, folder).json()
    no_weights(folder)
    refused = register(client, folder).json()["error"]
    assert "architecture_only" in refused["hint"]
    model = register(client, folder, architecture_only=True).json()
    assert (model["status"], model["kind"], model["parameters"]) == ("ready", "base", None)
    assert model["architecture"] == with_weights["architecture"]
    known = {each["id"] for each in client.get("/v1/models").json()["data"]}
    assert model["name"] not in known
    assert client.get(f"/v1/models/{model['name']}").status_code == 404
    assert with_weights["name"] in known
    for path, asked in (
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}]}),
        ("/v1/completions", {"prompt": "a"}),
    ):
        answer = client.post(path, json={"model": model["name"]} | asked)
        assert (answer.status_code, answer.json()["error"]["param"]) == (422, "model")
        assert "without weights" in answer.json()["error"]["message"]
    texts = client.post("/datasets", content=b'{"text": "Once upon a time."}').json()["id"]
    job = {"base_model": model["name"], "dataset": texts, "stage": "pt", "method": {"type": "full"}}
    refused = client.post("/jobs", json=job).json()["error"]
    assert (refused["param"], "initial_weights" in refused["hint"]) == ("base_model", True)
    job["hyperparameters"] = {"initial_weights": "random"}
    planned, usual = (
        client.post("/jobs", params={"dry_run": True}, json=job | {"base_model": name}).json()["memory"]
        for name in (model["name"], with_weights["name"])
    )
    assert planned["total_bytes"] == pytest.approx(usual["total_bytes"], rel=0.05)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_experts": 8}))
    of_experts = register(client, folder, architecture_only=True).json()["name"]
    planned = client.post("/jobs", params={"dry_run": True}, json=job | {"base_model": of_experts}).json()
    assert planned["memory"] is None


@pytest.mark.parametrize("source", ["hf://owner/name", "checkpoint://ckpt_1"])
def test_an_architecture_is_a_directory(client: httpx.Client, source: str) -> None:
    answer = register(client, source, architecture_only=True)
    assert (answer.status_code, answer.json()["error"]["param"]) == (422, "architecture_only")


@pytest.mark.parametrize(
    "source", ["/nowhere/at/all", "ftp://host/model", "hf://only-a-name", "modelscope://a/b/c", "hf://../x"]
)
def test_a_source_that_cannot_be_read_is_refused(client: httpx.Client, source: str) -> None:
    answer = register(client, source)
    assert (answer.status_code, answer.json()["error"]["param"]) == (422, "source")


def test_a_hub_s_model_is_accepted_and_waits_for_its_files(client: httpx.Client) -> None:
    answer = register(client, "modelscope://owner/name@main")
    assert (answer.status_code, answer.json()["status"]) == (202, "downloading")
    body = {"base_model": answer.json()["name"], "dataset": "ds_none"}
    assert client.post("/jobs", json=body).json()["error"]["code"] == "model_not_ready"


def test_a_model_without_a_chat_template_needs_one_given(client: httpx.Client, folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config.pop("chat_template", None)
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    bare = register(client, folder).json()
    assert bare["has_chat_template"] is False
    rows = client.post("/datasets", content=b'{"instruction": "a", "output": "b"}').json()["id"]
    refusal = client.post("/jobs", json={"base_model": bare["name"], "dataset": rows}).json()["error"]
    assert (refusal["param"], "chat template" in refusal["message"]) == ("base_model", True)
    template = "{% for m in messages %}{{ m['content'] }}<|im_end|>{% endfor %}"
    given = register(client, folder, chat_template=template).json()
    assert given["has_chat_template"] is True
    assert client.post("/jobs", json={"base_model": given["name"], "dataset": rows}).status_code == 202


def test_a_template_that_cannot_be_parsed_is_refused(client: httpx.Client, folder: Path) -> None:
    answer = register(client, folder, chat_template="{% for m in messages %}")
    assert (answer.status_code, answer.json()["error"]["param"]) == (422, "chat_template")


def test_a_name_is_taken_once(client: httpx.Client, folder: Path) -> None:
    answer = register(client, folder, name="demo-base")
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "name_taken")


def test_a_model_goes_when_nothing_needs_it(client: httpx.Client, folder: Path) -> None:
    name = register(client, folder).json()["name"]
    rows = client.post("/datasets", content=b'{"instruction": "a", "output": "b"}').json()["id"]
    job = client.post("/jobs", json={"base_model": name, "dataset": rows}).json()["id"]
    busy = client.delete(f"/models/{name}")
    assert (busy.status_code, busy.json()["error"]["code"]) == (409, "in_use")
    assert job in busy.json()["error"]["message"]
    client.post(f"/jobs/{job}/cancel")
    assert client.delete(f"/models/{name}").status_code == 204
    assert client.get(f"/models/{name}").json()["error"]["code"] == "model_not_found"
    assert (folder / "model.safetensors").exists()
    assert client.get(f"/jobs/{job}").json()["base_model"] == name
