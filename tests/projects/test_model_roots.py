"""With keys, models come only from directories below the operator's roots, and never from the service's own."""

from __future__ import annotations

import shutil
from pathlib import Path
from uuid import uuid4

import httpx
import pytest
from pydantic import ValidationError

from app.kit import storage
from app.settings import Settings, get_settings
from tests.conftest import DEMO_BASE
from tests.datasets.helpers import refusal
from tests.projects.conftest import As, Keys


def register(client: httpx.Client, source: Path) -> httpx.Response:
    return client.post("/models", json={"name": f"m-{uuid4().hex[:8]}", "source": str(source)})


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The operator's root, with a model in it; a model lies beside it too."""
    for folder in ("models/good", "models-not/bad"):
        shutil.copytree(DEMO_BASE, tmp_path / folder)
    monkeypatch.setattr(get_settings(), "model_roots", f"/nowhere, {tmp_path / 'models'}")
    return tmp_path / "models"


def test_without_keys_any_directory_will_do(client: httpx.Client, tmp_path: Path) -> None:
    assert register(client, Path(shutil.copytree(DEMO_BASE, tmp_path / "model"))).status_code == 201


def test_with_keys_and_no_root_only_the_demo_base_is_left(keys: Keys, client_of: As, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(DEMO_BASE, tmp_path / "model"))
    for key in (keys.ours["write"], keys.admin):
        error = refusal(register(client_of(key), folder), 422, "source_not_allowed")
        assert (error["param"], "BURNISH_MODEL_ROOTS" in error["hint"]) == ("source", True)
        register(client_of(key), DEMO_BASE).raise_for_status()


def test_what_is_below_a_root_is_registered_where_it_really_lies(keys: Keys, client_of: As, root: Path) -> None:
    ours = client_of(keys.ours["write"])
    (root / "link").symlink_to(root / "good")
    for source in (root / "good", root / "link", root / "none" / ".." / "good"):
        register(ours, source).raise_for_status()
    assert refusal(register(ours, root / "none"), 422, "invalid_value")["param"] == "source"


def test_what_leads_out_of_every_root_is_refused_whether_or_not_it_exists(
    keys: Keys, client_of: As, root: Path
) -> None:
    ours, outside = client_of(keys.ours["write"]), root.parent / "models-not/bad"
    (root / "link").symlink_to(outside)
    (root / "parent").symlink_to(root.parent)
    for source in (
        outside, root / "link", root / "../models-not/bad", root / "parent/models-not/bad", root.parent, root.parent / "no",
    ):  # fmt: skip
        error = refusal(register(ours, source), 422, "source_not_allowed")
        assert str(root) in error["hint"]


def test_the_service_s_own_files_are_no_model_even_below_a_root(
    keys: Keys, client_of: As, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = get_settings().home.resolve()
    artifact = f"artifacts/{uuid4().hex}/1"
    storage.put_folder(Path(shutil.copytree(DEMO_BASE, tmp_path / "out")), artifact)
    monkeypatch.setattr(get_settings(), "model_roots", str(home.parent))
    (tmp_path / "link").symlink_to(home)
    for source in (storage.fetch_folder(artifact), home, home.parent, tmp_path / "link/blobs" / artifact):
        refusal(register(client_of(keys.ours["write"]), source), 422, "source_not_allowed")


@pytest.mark.parametrize("name", ["\0", "a" * 800])
def test_a_path_that_cannot_be_is_refused(keys: Keys, client_of: As, root: Path, name: str) -> None:
    assert refusal(register(client_of(keys.ours["write"]), root / name), 422, "invalid_value")["param"] == "source"


def test_a_root_is_an_absolute_path() -> None:
    with pytest.raises(ValidationError, match="'models' is not an absolute path"):
        Settings(model_roots="/a,models")
