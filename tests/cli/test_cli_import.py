"""burnish datasets import: LLaMA-Factory's registries, from folders and from hubs."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from app.cli import hub_datasets
from app.cli.hub_datasets import HubFailure, Wanted
from app.cli.hub_files import NoFiles, choose
from tests.cli.conftest import Run
from tests.cli.terminal import table
from tests.hubs.server import Hub

LINE = json.dumps({"instruction": "Is it good?", "output": "Yes."}) + "\n"
TEXT_ENTRIES = (
    "identity", "alpaca_en_demo", "alpaca_zh_demo", "glaive_toolcall_en_demo", "dpo_en_demo", "kto_en_demo", "wiki_demo",
    "c4_demo",
)  # fmt: skip


class Registry:
    """A folder with a `dataset_info.json`, and the command on it."""

    def __init__(self, folder: Path, run: Run) -> None:
        self.folder, self.run = folder, run

    def write(self, entries: dict[str, Any], **files: str) -> None:
        """`rows_json="…"` becomes the file rows.json."""
        (self.folder / "dataset_info.json").write_text(json.dumps(entries))
        for name, content in files.items():
            (self.folder / name.replace("_", ".")).write_text(content)

    def imported(self, *options: object) -> tuple[int, dict[str, dict[str, Any]]]:
        """Exit code, and the outcomes by the names of the datasets."""
        result = self.run("datasets", "import", self.folder, "--json", *options)
        return result.exit_code, {outcome["name"]: outcome for outcome in json.loads(result.stdout)}


@pytest.fixture
def registry(tmp_path: Path, run: Run) -> Registry:
    """An empty folder."""
    folder = tmp_path / "data"
    folder.mkdir()
    return Registry(folder, run)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub that both libraries talk to, with a dataset of two subsets."""
    with Hub({}) as hub:
        card = "---\nconfigs:\n" + "".join(
            f"- config_name: {name}\n  data_files:\n  - {{split: train, path: '{name}/*.jsonl'}}\n"
            for name in ("en", "zh")
        )
        files = {
            "README.md": f"{card}---\n# Data\n",
            "en/a.jsonl": LINE,
            "zh/a.jsonl": LINE * 2,
            "zh/b.jsonl": LINE * 3,
        }
        hub.datasets["acme/rows"] = {name: content.encode() for name, content in files.items()}
        for name in ("HF_TOKEN", "HF_HUB_OFFLINE", "HF_HUB_CACHE", "MODELSCOPE_API_TOKEN"):
            monkeypatch.delenv(name, raising=False)
        variables = {
            "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "MODELSCOPE_ENDPOINT": hub.url,
            "MODELSCOPE_CACHE": str(tmp_path / "modelscope"), "MODELSCOPE_HOME": str(tmp_path / "credentials"),
            "NO_PROXY": "127.0.0.1", "MODELSCOPE_REPO_TREE_PAGE_MAX_ATTEMPTS": "1",
        }  # fmt: skip
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        yield hub


@pytest.mark.parametrize("name", TEXT_ENTRIES)
def test_the_demo_entries_of_llama_factory_are_imported(run: Run, shared_data: Path, name: str) -> None:
    folder = shared_data / "llamafactory_demo"
    result = run("datasets", "import", folder, "--only", name, "--json")
    assert result.exit_code == 0, result.output
    [outcome] = json.loads(result.stdout)
    assert outcome["status"] in ("imported", "already there")
    assert outcome["rows"] > 0
    shown = json.loads(run("datasets", "show", outcome["dataset"], "--json").stdout)
    kinds = {"dpo_en_demo": "preference", "kto_en_demo": "labels", "wiki_demo": "text", "c4_demo": "text"}
    assert (shown["name"], shown["kind"]) == (name, kinds.get(name, "chat"))


def test_a_whole_registry_is_imported_without_its_hubs(run: Run, shared_data: Path) -> None:
    result = run("datasets", "import", shared_data / "llamafactory_demo", "--json")
    assert result.exit_code == 0, result.output
    outcomes = {outcome["name"]: outcome for outcome in json.loads(result.stdout)}
    assert {name for name, outcome in outcomes.items() if outcome["dataset"]} == set(TEXT_ENTRIES)
    assert outcomes["mllm_demo"]["reason"] == "images are not supported"
    assert outcomes["dpo_zh_demo"]["reason"] == "the file is not in the folder: dpo_zh_demo.json"
    assert "add --hubs" in outcomes["ultrachat_200k"]["reason"]


def test_the_sharegpt_sample_is_imported(run: Run, shared_data: Path, registry: Registry) -> None:
    content = (shared_data / "sharegpt" / "dummy_conversation.json").read_text()
    registry.write({"dummy": {"file_name": "rows.json", "formatting": "sharegpt"}}, rows_json=content)
    code, outcomes = registry.imported()
    assert (code, outcomes["dummy"]["status"]) == (0, "imported"), outcomes


def test_a_bad_entry_stops_no_other(registry: Registry) -> None:
    registry.write(
        {
            "bad": {"file_name": "bad.jsonl"},
            "out": {"file_name": "../rows.jsonl"},
            "absent": {"file_name": "absent.json"},
            "good": {"file_name": "rows.jsonl"},
        },
        bad_jsonl=LINE + '{"instruction": "a"}\n',
        rows_jsonl=LINE,
    )
    code, outcomes = registry.imported()
    assert code == 1
    assert {name: outcome["status"] for name, outcome in outcomes.items()} == {
        "bad": "refused", "out": "refused", "absent": "skipped", "good": "imported",
    }  # fmt: skip
    assert outcomes["bad"]["reason"].startswith("line 2 output: ")
    shown = registry.run("datasets", "report", outcomes["bad"]["report"])
    assert [each["line"] for each in table(shown.stdout)] == ["2"]
    assert "out of the folder" in outcomes["out"]["reason"]


def test_skipped_entries_alone_are_no_failure(registry: Registry) -> None:
    registry.write({"absent": {"file_name": "absent.json"}, "cloud": {"cloud_file_name": "s3://a/b"}})
    assert registry.imported()[0] == 0


def test_the_second_time_everything_is_there_already(registry: Registry) -> None:
    registry.write({"mine": {"file_name": "rows.jsonl"}}, rows_jsonl=LINE * 7)
    first, again = (registry.imported()[1]["mine"] for _ in range(2))
    assert (first["status"], again["status"]) == ("imported", "already there")
    assert first["dataset"] == again["dataset"]


def test_bad_rows_are_dropped_where_that_is_asked_for(registry: Registry) -> None:
    registry.write({"mine": {"file_name": "rows.jsonl"}}, rows_jsonl=LINE + '{"instruction": "a"}\n')
    code, outcomes = registry.imported("--on-bad-rows", "drop")
    assert (code, outcomes["mine"]["rows"]) == (0, 1)
    assert "1 bad rows were dropped" in outcomes["mine"]["reason"]


def test_columns_and_tags_reach_the_service(registry: Registry) -> None:
    rows = [{"dialogue": [{"who": "Q", "said": "Is it good?"}, {"who": "A", "said": "Yes."}]}]
    entry = {
        "file_name": "rows.json", "formatting": "sharegpt", "columns": {"messages": "dialogue", "system": None},
        "tags": {"role_tag": "who", "content_tag": "said", "user_tag": "Q", "assistant_tag": "A"},
    }  # fmt: skip
    registry.write({"mine": entry}, rows_json=json.dumps(rows))
    outcome = registry.imported()[1]["mine"]
    [row] = [json.loads(line) for line in registry.run("datasets", "rows", outcome["dataset"]).stdout.splitlines()]
    assert [(turn["role"], turn["content"]) for turn in row["messages"]] == [
        ("user", "Is it good?"),
        ("assistant", "Yes."),
    ]


def test_a_column_may_bear_the_usual_name_of_another(registry: Registry) -> None:
    entry = {"file_name": "rows.jsonl", "columns": {"prompt": "input", "response": "target"}}
    registry.write({"mine": entry}, rows_jsonl=json.dumps({"input": "Is it good?", "target": "Yes."}) + "\n")
    outcome = registry.imported()[1]["mine"]
    [row] = [json.loads(line) for line in registry.run("datasets", "rows", outcome["dataset"]).stdout.splitlines()]
    assert row["messages"][0]["content"] == "Is it good?"


def test_each_file_of_a_folder_is_a_dataset(registry: Registry) -> None:
    (registry.folder / "many").mkdir()
    for name in ("a", "b"):
        (registry.folder / "many" / f"{name}.jsonl").write_text(LINE * 2)
    registry.write({"mine": {"file_name": "many"}})
    assert list(registry.imported()[1]) == ["mine-a", "mine-b"]


def test_num_samples_are_drawn(registry: Registry) -> None:
    registry.write({"mine": {"file_name": "rows.jsonl", "num_samples": 3}}, rows_jsonl=LINE * 10)
    outcome = registry.imported()[1]["mine"]
    assert (outcome["rows"], outcome["reason"]) == (3, "3 rows, drawn with seed 42")


def test_an_unknown_name_is_told_before_anything_is_sent(registry: Registry) -> None:
    registry.write({"mine": {"file_name": "rows.jsonl"}}, rows_jsonl=LINE)
    result = registry.run("datasets", "import", registry.folder, "--only", "other")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "has no entry 'other'" in result.stderr


@pytest.mark.parametrize("hub_name", ["modelscope", "hf"])
def test_entries_of_a_hub_are_fetched_in_parts(registry: Registry, hub: Hub, tmp_path: Path, hub_name: str) -> None:
    registry.write({"mine": {"ms_hub_url": "acme/rows", "hf_hub_url": "acme/rows", "subset": "zh"}})
    assert registry.imported()[1]["mine"]["status"] == "skipped"
    assert not hub.fetched
    code, outcomes = registry.imported("--hubs", "--hub", hub_name, "--keep", tmp_path / "kept")
    assert code == 0, outcomes
    rows = {name: outcome["rows"] for name, outcome in outcomes.items()}
    assert rows == {"mine-00001-of-00002": 2, "mine-00002-of-00002": 3}
    assert sorted(file for file, _ in hub.fetched) == ["README.md", "zh/a.jsonl", "zh/b.jsonl"]
    assert (tmp_path / "kept" / "mine" / "zh" / "b.jsonl").is_file()


def test_modelscope_goes_first_unless_the_other_is_asked_for(registry: Registry, hub: Hub) -> None:
    registry.write({"mine": {"hf_hub_url": "acme/absent", "ms_hub_url": "acme/rows", "subset": "en"}})
    assert registry.imported("--only", "mine")[0] == 0
    code, outcomes = registry.imported("--only", "mine", "--hub", "hf")
    assert (code, outcomes["mine"]["status"]) == (1, "failed")
    assert "Hugging Face has no dataset 'acme/absent'" in outcomes["mine"]["reason"]


@pytest.mark.parametrize("name", ["modelscope", "hf"])
def test_what_a_hub_refuses_is_said_in_words(
    hub: Hub, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reason(repository: str, subset: str | None = "en") -> str:
        with pytest.raises(HubFailure) as caught:
            hub_datasets.fetch(Wanted(name, repository, subset, "train", None), tmp_path / "fetched")
        return str(caught.value)

    assert "has no dataset 'acme/absent'" in reason("acme/absent")
    assert "has no subset 'fr', but 'en', 'zh'" in reason("acme/rows", "fr")
    assert "names none: 'en', 'zh'" in reason("acme/rows", None)
    for variable in ("HF_ENDPOINT", "MODELSCOPE_ENDPOINT"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")
    assert "cannot be reached" in reason("acme/rows")


def test_modelscope_says_that_access_is_denied(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(HubFailure, match="does not let you read 'acme/gated'"):
        hub_datasets.fetch(Wanted("modelscope", "acme/gated", None, "train", None), tmp_path)


def test_a_download_in_which_nothing_arrives_is_given_up(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_datasets, "STALL_SECONDS", 2.0)
    hub.held.add("en/a.jsonl")
    with pytest.raises(HubFailure, match="nothing has arrived"):
        hub_datasets.fetch(Wanted("hf", "acme/rows", "en", "train", None), tmp_path)


CARD = {
    "configs": [
        {"config_name": "a", "data_files": "a/**/*.json"},
        {"config_name": "b", "default": True, "data_files": [{"split": "x", "path": ["b/[!0].json", "b/1?.json"]}]},
        {"config_name": "c", "data_dir": "c"},
    ]
}


@pytest.mark.parametrize(
    ("paths", "asked", "chosen"),
    [
        ("data.json README.md LICENSE.txt dataset_infos.json .git/x.json", {}, "data.json"),
        ("train.json test.json", {}, "train.json"),
        ("train.json test.json", {"split": "test"}, "test.json"),
        ("data/dev.csv data/training.csv", {"split": "validation"}, "data/dev.csv"),
        ("rows.json test.json", {}, "rows.json"),
        ("data/train-00000-of-00001.parquet data/train_sft-00000-of-00001-ab12.parquet", {"split": "train_sft"},
         "data/train_sft-00000-of-00001-ab12.parquet"),
        ("data/train-00000-of-00001.parquet data/train_sft-00000-of-00001-ab12.parquet", {},
         "data/train-00000-of-00001.parquet"),
        ("a.json b.parquet c.parquet", {}, "b.parquet c.parquet"),
        ("en/train.json zh/train.json", {"subset": "zh"}, "zh/train.json"),
        ("rows_en.json rows_zh.json", {"subset": "en"}, "rows_en.json"),
        ("python/a.json rust/a.json", {"folder": "python"}, "python/a.json"),
        ("rows.jsonl.gz ../../rows.jsonl /rows.jsonl", {}, "rows.jsonl.gz"),
        ("a/x.json a/d/y.json b/1.json", {"subset": "a", "card": CARD}, "a/d/y.json a/x.json"),
        ("b/0.json b/1.json b/12.json b/123.json", {"split": "x", "card": CARD}, "b/1.json b/12.json"),
        ("c/train.json c/test.json train.json", {"subset": "c", "card": CARD}, "c/train.json"),
    ],
)  # fmt: skip
def test_the_files_of_a_split_are_chosen(paths: str, asked: dict[str, Any], chosen: str) -> None:
    wanted = {"card": {}, "subset": None, "split": "train", "folder": None} | asked
    assert choose(paths.split(), **wanted) == chosen.split()


@pytest.mark.parametrize(
    ("paths", "asked", "reason"),
    [
        ("README.md script.py", {}, "none of its 2 files"),
        ("train.json", {"split": "test"}, "no split 'test'"),
        ("train.json", {"split": "train[:10]"}, "num_samples"),
        ("train.json", {"subset": "zh"}, "no subset 'zh'"),
        ("train.json", {"folder": "python"}, "in the folder 'python'"),
        ("b/1.json", {"card": CARD}, "no split 'train', but 'x'"),
        ("z.json", {"card": CARD, "subset": "a"}, "no data file matches"),
    ],
)
def test_why_no_file_is_chosen_is_said(paths: str, asked: dict[str, Any], reason: str) -> None:
    wanted = {"card": {}, "subset": None, "split": "train", "folder": None} | asked
    with pytest.raises(NoFiles) as caught:
        choose(paths.split(), **wanted)
    assert reason in str(caught.value)


def test_a_compressed_file_is_sent_as_it_is(registry: Registry) -> None:
    (registry.folder / "rows.jsonl.gz").write_bytes(gzip.compress(LINE.encode() * 4))
    registry.write({"mine": {"file_name": "rows.jsonl.gz"}})
    assert registry.imported()[1]["mine"]["rows"] == 4
