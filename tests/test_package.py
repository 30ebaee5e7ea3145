"""Installed without the checkout, from a source archive, Burnish is the whole service; and one `up` has a home to itself."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from demo.service import free_port, is_up
from tests.conftest import REPOSITORY, eventually

ROW = {"instruction": "Translate.", "input": "你好", "output": "Hello"}


def environment(**settings: str) -> dict[str, str]:
    """Nothing that leads to the checkout, and no settings but these."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "OMP_NUM_THREADS") if name in os.environ}
    return kept | settings


def run(command: list[str], folder: Path) -> None:
    done = subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`site-packages` of an environment that has Burnish from its source archive, and everything else from the suite's."""
    folder = tmp_path_factory.mktemp("package")
    source = folder / "source"
    source.mkdir()  # a copy, since building leaves files behind
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, source)
    for name in ("app", "worker"):
        shutil.copytree(REPOSITORY / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    run([sys.executable, "-c", "import setuptools.build_meta as backend; backend.build_sdist('..')"], source)
    [archive] = folder.glob("*.tar.gz")
    shutil.rmtree(source)
    venv.create(folder / "venv", symlinks=True)
    [site] = (folder / "venv").glob("lib/python3*/site-packages")
    # `.pth` files in there are not read, so the suite's own editable install of Burnish is not seen.
    (site / "suite.pth").write_text(sysconfig.get_path("purelib") + "\n")
    install = ["install", "--no-deps", "--no-index", "--no-build-isolation", "--no-compile", "--quiet", str(archive)]
    run([str(folder / "venv" / "bin" / "python"), "-m", "pip", *install], folder)
    return site


@dataclass
class Up:
    """`burnish up` of the installed service, and the folder that it was started in."""

    command: str
    folder: Path
    port: int
    process: subprocess.Popen[bytes]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def refusal(self, word: str, **settings: str) -> str:
        """What `burnish WORD` says, which must end at once and fail."""
        done = subprocess.run(
            [self.command, word], cwd=self.folder, env=environment(**settings), capture_output=True, text=True, timeout=30
        )  # fmt: skip
        assert (done.returncode, done.stdout) == (1, "")
        assert is_up(self.url)
        return done.stderr


@pytest.fixture(scope="module")
def up(site: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """The service, started in a folder in which the user has an `app` and a `worker` of another kind."""
    folder, said = tmp_path_factory.mktemp("folder"), tmp_path_factory.mktemp("said") / "said"
    for name in ("app", "worker"):
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text("raise RuntimeError('this is not Burnish')")
    command, port = str(site.parent.parent.parent / "bin" / "burnish"), free_port()
    with said.open("wb") as output:
        process = subprocess.Popen(
            [command, "up"], cwd=folder, env=environment(BURNISH_PORT=str(port)), stdout=output, stderr=output
        )
    started = Up(command, folder, port, process)
    try:
        eventually(lambda: "Burnish serves" in said.read_text() or process.poll() is not None, 60, "the start")
        assert is_up(started.url), said.read_text()  # from the moment that it says so
        yield started
        training = folder / ".burnish" / "logs" / "training.log"
        eventually(lambda: "ready." in training.read_text(), 30, "the training worker")
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(40)
    assert process.returncode == 0
    assert "ended with" not in said.read_text()
    assert {path.name for path in folder.iterdir()} == {"app", "worker", ".burnish"}


def test_every_file_is_installed(site: Path) -> None:
    def files(root: Path) -> set[Path]:
        found = (path for name in ("app", "worker") for path in (root / name).rglob("*"))
        return {path.relative_to(root) for path in found if path.is_file() and path.suffix != ".pyc"}

    assert files(site) == files(REPOSITORY)
    assert not {"demo", "migrations", "tests"} & {path.name for path in site.iterdir()}


def test_an_installed_service_answers_from_any_folder(site: Path, up: Up) -> None:
    with httpx.Client(base_url=up.url, timeout=60) as client:
        base = client.get("/models/demo-base").json()
        assert (base["status"], base["source"]) == ("ready", str(site / "app" / "models" / "demo_base"))
        dataset = client.post("/datasets", params={"name": "rows"}, content=json.dumps(ROW).encode()).json()["id"]
        wanted = {"base_model": "demo-base", "chat_template": "chatml"}
        preview = client.post(f"/datasets/{dataset}/preview", json=wanted)
        assert (preview.status_code, "<|im_start|>" in preview.text) == (200, True), preview.text
        plan = client.post("/jobs?dry_run=true", json={"base_model": "demo-base", "dataset": dataset})
        assert plan.status_code == 200, plan.text


def test_a_second_start_on_the_same_home_is_refused(up: Up) -> None:
    said = up.refusal("up", BURNISH_PORT=str(free_port()))
    home = (up.folder / ".burnish").resolve()
    assert said.startswith(f"Burnish already runs on {home} (process {up.process.pid}, since ")
    assert "BURNISH_HOME" in said
    assert said.count("\n") == 1


@pytest.mark.parametrize("word", ["up", "api"])
def test_a_port_that_is_taken_ends_the_start_before_anything_is_made(up: Up, word: str, tmp_path: Path) -> None:
    said = up.refusal(word, BURNISH_PORT=str(up.port), BURNISH_HOME=str(tmp_path / "other"))
    taken = f"Port {up.port} of 127.0.0.1 is taken by another program."
    assert said == f"{taken} Stop it, or set BURNISH_PORT to a free port.\n"
    assert not [path for path in tmp_path.glob("other/*") if path.name != "up.lock"]
