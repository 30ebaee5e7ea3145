"""Models that attack: what their folders hold is looked at before it is opened, and nothing of theirs runs."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from app.kit.database import DEFAULT_PROJECT, reading
from app.models.own_code import runs_own_code
from app.models.service import find
from app.settings import get_settings
from tests.datasets.helpers import refusal
from tests.models.own import config, folder, own
from tests.models.test_register import register

__all__ = ["folder", "own"]

INDEX = "model.safetensors.index.json"


def instead(folder: Path, name: str, make: Callable[[Path], None]) -> None:
    (folder / name).unlink(missing_ok=True)
    make(folder / name)


def link(to: str) -> Callable[[Path], None]:
    return lambda path: path.symlink_to(to)


# What is done to a good folder, and what the refusal names.
ATTACKS: dict[str, tuple[Callable[[Path], None], str]] = {
    "a pipe for a config": (lambda f: instead(f, "config.json", os.mkfifo), "no file, config.json"),
    "a pipe below": (lambda f: ((f / "a/b").mkdir(parents=True), os.mkfifo(f / "a/b/c"))[1], "no file, c"),
    "a device for weights": (lambda f: instead(f, "model.safetensors", link("/dev/zero")), "leads out of it"),
    "a file of the machine": (lambda f: instead(f, "chat_template.jinja", link("/etc/passwd")), "leads out of it"),
    "a folder of the machine": (lambda f: (f / "etc").symlink_to("/etc"), "leads out of it"),
    "a link to nothing": (lambda f: (f / "lost").symlink_to(f / "nothing"), "a link to nothing, lost"),
    "a link to itself": (lambda f: (f / "loop").symlink_to(f / "loop"), "loop"),
    "a config without an end": (lambda f: (f / "config.json").write_text("[" * 200_000), "config.json"),
    "a config that is huge": (lambda f: os.truncate(f / "config.json", 2**40), "of over"),
    "a template that is huge": (lambda f: os.truncate(f / "chat_template.jinja", 2**40), "of over"),
    "folders without an end": (lambda f: (f / "/".join("d" * 40)).mkdir(parents=True), "folders more than"),
    "a name that is no text": (lambda f: os.mkfifo(os.fsencode(f) + b"/\xff"), "no file"),
    "another model's name": (
        lambda f: (f / "adapter_config.json").write_text('{"base_model_name_or_path": "/elsewhere"}'), "adapter_config.json"
    ),
    "no size": (lambda f: config(f, hidden_size=0), "hidden_size"),
    "a size below none": (lambda f: config(f, hidden_size=-4), "hidden_size"),
    "a size beyond all": (lambda f: config(f, hidden_size=10**400), "hidden_size"),
    "a size that is none": (lambda f: config(f, hidden_size=True), "hidden_size"),
    "weights from elsewhere": (
        lambda f: (f / INDEX).write_text(json.dumps({"weight_map": {"a": "../../weights.safetensors"}})), "no file"
    ),
    "weights that are pickles": (
        lambda f: ((f / "x.bin").touch(), (f / INDEX).write_text(json.dumps({"weight_map": {"a": "x.bin"}})))[1], "no file"
    ),
    "weights of another shape": (lambda f: (f / INDEX).write_text('{"weight_map": []}'), "weight_map"),
}  # fmt: skip


@pytest.mark.parametrize("attack", ATTACKS)
def test_what_is_no_plain_model_is_refused_unopened(client: httpx.Client, folder: Path, attack: str) -> None:
    spoil, words = ATTACKS[attack]
    spoil(folder)
    answer = register(client, folder)
    error = refusal(answer, 422, "invalid_value")
    assert error["param"] == "source"
    assert words in error["message"]


@pytest.mark.parametrize("source", ["/dev", "/dev/zero", "/proc/self", "/", "\0", "a" * 1000])
def test_a_source_that_is_no_model_at_all_is_refused(client: httpx.Client, source: str) -> None:
    assert register(client, source).status_code == 422


def test_a_hub_s_source_ends_with_its_name(client: httpx.Client) -> None:
    refusal(register(client, "hf://acme/base\n"), 422, "invalid_value")


@pytest.mark.parametrize(
    "template", ["{{ " + "(" * 5000 + ")" * 5000 + " }}", "{% if a %}" * 3000 + "{% endif %}" * 3000]
)
def test_a_template_without_an_end_is_refused(client: httpx.Client, folder: Path, template: str) -> None:
    assert refusal(register(client, folder, chat_template=template), 422, "invalid_value")["param"] == "chat_template"


def test_a_context_that_is_none_counts_as_unknown(client: httpx.Client, folder: Path) -> None:
    config(folder, max_position_embeddings=-5)
    name = register(client, folder).raise_for_status().json()["name"]
    dataset = client.post("/datasets", content=b'{"instruction": "a", "output": "b"}').json()["id"]
    job = client.post("/jobs", json={"base_model": name, "dataset": dataset}).raise_for_status().json()
    assert job["hyperparameters"]["max_length"] == 2048


def test_links_of_hugging_face_s_cache_are_followed_into_its_blobs_only(
    client: httpx.Client, folder: Path, tmp_path: Path
) -> None:
    repository = tmp_path / "models--acme--base"
    blobs, snapshot = repository / "blobs", repository / "snapshots" / "c0ffee"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for number, path in enumerate(sorted(folder.iterdir())):
        shutil.move(path, blobs / str(number))
        (snapshot / path.name).symlink_to(f"../../blobs/{number}")
    assert register(client, snapshot).status_code == 201
    instead(blobs, "0", link("/etc/passwd"))
    assert "leads out of it" in refusal(register(client, snapshot), 422, "invalid_value")["message"]


def test_pickled_weights_are_refused_with_a_command_that_converts_them(client: httpx.Client, folder: Path) -> None:
    import torch
    from safetensors.torch import load_file

    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    hint = refusal(register(client, folder), 422, "invalid_value")["hint"]
    command = shlex.split(hint[hint.index("python -c") :].replace("DIRECTORY", str(folder)))
    subprocess.run([sys.executable, *command[1:]], check=True, capture_output=True)
    assert register(client, folder).status_code == 201


def allow(patch: pytest.MonkeyPatch, *sources: object) -> None:
    patch.setattr(get_settings(), "allow_remote_code", ", ".join(map(str, sources)))


def test_code_of_a_model_s_own_needs_an_admin_s_leave_by_source(
    client: httpx.Client, own: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, marker = own
    error = refusal(register(client, folder), 422, "remote_code_refused")
    assert "BURNISH_ALLOW_REMOTE_CODE" in error["hint"]
    allow(monkeypatch, "allowed-by-name", folder.parent)
    refusal(register(client, folder, name="allowed-by-name"), 422, "remote_code_refused")
    allow(monkeypatch, "/elsewhere", folder)
    name = register(client, folder).raise_for_status().json()["name"]
    assert not marker.exists()
    with reading() as session:
        model = find(session, DEFAULT_PROJECT, name)
    assert model is not None
    assert runs_own_code(model)
    allow(monkeypatch)
    assert not runs_own_code(model)  # leave can be taken back


def test_allowed_code_runs_for_a_preview_and_what_is_not_needed_never_does(
    client: httpx.Client, own: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, marker = own
    dataset = client.post("/datasets", content=b'{"instruction": "a", "output": "b"}').json()["id"]
    allow(monkeypatch, folder)
    name = register(client, folder).raise_for_status().json()["name"]
    client.post(f"/datasets/{dataset}/preview", json={"base_model": name}).raise_for_status()
    allow(monkeypatch)
    marker.unlink(missing_ok=True)
    config(folder, model_type="qwen2")  # which transformers knows
    name = register(client, folder).raise_for_status().json()["name"]
    client.post(f"/datasets/{dataset}/preview", json={"base_model": name}).raise_for_status()
    assert not marker.exists()
