"""What entries of a `dataset_info.json` mean here."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import orjson
import pytest

from app.cli.dataset_info import Refused, Skipped, local_files, parse, read, upload_fields
from app.cli.failure import Failure
from app.cli.sampling import sample

ROLES = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}


def all_fields(filename: str = "rows.json", **entry: Any) -> dict[str, Any]:
    """The upload's fields of an entry, `columns` and `tags` as objects."""
    made: dict[str, Any] = dict(upload_fields(parse("mine", {"file_name": filename, **entry}), filename))
    return {key: json.loads(value) if key in ("columns", "tags") else value for key, value in made.items()}


def fields(filename: str = "rows.json", **entry: Any) -> dict[str, Any]:
    """The same, without the columns that are not to be read."""
    made = all_fields(filename, **entry)
    if "columns" in made:
        made["columns"] = {name: column for name, column in made["columns"].items() if column is not None}
    return made


def test_alpaca_is_the_default() -> None:
    assert fields() == {"format": "alpaca", "kind": "chat"}


def test_columns_that_are_null_are_left_out() -> None:
    columns = {"prompt": "question", "query": None, "response": "answer", "history": "before"}
    assert fields(columns=columns) == {
        "format": "alpaca",
        "kind": "chat",
        "columns": {"prompt": "question", "response": "answer", "history": "before"},
    }


@pytest.mark.parametrize(
    ("formatting", "columns", "unread"),
    [
        ("alpaca", {"prompt": "a", "response": "b"}, {"query", "history", "system", "tools"}),
        ("alpaca", {"prompt": "a", "response": "b", "query": "c", "system": None}, {"history", "system", "tools"}),
        ("sharegpt", {"messages": "a", "tools": "b"}, {"system"}),
        ("alpaca", None, set()),
    ],
)
def test_beside_columns_nothing_else_is_read(formatting: str, columns: dict[str, str] | None, unread: set[str]) -> None:
    made = all_fields(formatting=formatting, columns=columns).get("columns", {})
    assert {name for name, column in made.items() if column is None} == unread


def test_columns_that_the_formatting_does_not_read_are_left_out() -> None:
    columns = {"prompt": "a", "response": "b", "messages": "c", "chosen": "d"}
    assert fields(columns=columns)["columns"] == {"prompt": "a", "response": "b"}
    assert fields(columns=columns, formatting="sharegpt")["columns"] == {"messages": "c"}


def test_a_prompt_alone_is_text_for_pretraining() -> None:
    assert fields(columns={"prompt": "body", "response": None}) == {
        "format": "text",
        "kind": "text",
        "columns": {"text": "body"},
    }


@pytest.mark.parametrize("filename", ["wiki.txt", "WIKI.TXT", "wiki.txt.gz", "wiki.txt.zst"])
def test_a_plain_text_file_is_text_whatever_its_columns(filename: str) -> None:
    assert fields(filename, columns={"prompt": "text"}) == {"format": "text", "kind": "text"}


@pytest.mark.parametrize("formatting", ["alpaca", "sharegpt"])
def test_ranking_makes_preferences(formatting: str) -> None:
    made = fields(formatting=formatting, ranking=True, columns={"chosen": "good", "rejected": "bad", "kto_tag": "x"})
    assert made == {"format": formatting, "kind": "preference", "columns": {"chosen": "good", "rejected": "bad"}}


def test_a_kto_tag_makes_labels() -> None:
    made = fields(formatting="sharegpt", columns={"messages": "messages", "kto_tag": "label"}, tags=ROLES)
    assert made == {
        "format": "sharegpt",
        "kind": "labels",
        "columns": {"messages": "messages", "kto_tag": "label"},
        "tags": ROLES,
    }


def test_openai_under_its_own_names_is_openai() -> None:
    assert fields(formatting="openai") == {"format": "openai", "kind": "chat"}
    made = fields(formatting="openai", columns={"messages": "turns", "tools": "tools"}, tags=ROLES)
    assert made == {"format": "openai", "kind": "chat", "columns": {"messages": "turns", "tools": "tools"}}


def test_openai_without_columns_reads_what_llama_factory_reads() -> None:
    assert fields(formatting="openai", tags=ROLES)["columns"] == {"messages": "conversations"}


@pytest.mark.parametrize(
    "entry",
    [
        {"tags": ROLES | {"user_tag": "human"}, "columns": {"messages": "messages"}},
        {"ranking": True},
        {"columns": {"messages": "messages", "system": "system"}},
    ],
)
def test_openai_that_openai_does_not_know_is_sharegpt_under_other_names(entry: dict[str, Any]) -> None:
    made = fields(formatting="openai", **entry)
    assert made["format"] == "sharegpt"
    assert made["columns"]["messages"] == "messages"
    assert made["tags"]["role_tag"] == "role"
    assert made["tags"]["observation_tag"] == "tool"
    assert made["tags"]["user_tag"] == entry.get("tags", {}).get("user_tag", "user")


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ({"file_name": "a", "columns": {"images": "images"}}, "images are not supported"),
        ({"file_name": "a", "columns": {"videos": "v", "audios": "a"}}, "videos and audios are not supported"),
        ({"om_hub_url": "acme/data"}, "om_hub_url has no counterpart"),
        ({"script_url": "belle"}, "script_url has no counterpart"),
        ({"cloud_file_name": "s3://bucket/rows.json"}, "cloud_file_name has no counterpart"),
        ({"file_name": "a", "colour": 1}, "unknown key: colour"),
        ({"file_name": "a", "columns": {"reply": "b"}}, "unknown key: columns.reply"),
        ({"file_name": "a", "tags": {"bot_tag": "b"}}, "unknown key: tags.bot_tag"),
    ],
)
def test_what_has_no_counterpart_is_skipped_with_its_reason(entry: dict[str, Any], reason: str) -> None:
    with pytest.raises(Skipped, match=reason):
        parse("mine", entry)


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ([], "not an object"),
        ({}, "no source"),
        ({"file_name": None}, "no source"),
        ({"file_name": 1}, "file_name must be a string"),
        ({"file_name": "a", "formatting": "vicuna"}, 'formatting is "vicuna"'),
        ({"file_name": "a", "ranking": "yes"}, "ranking must be"),
        ({"file_name": "a", "num_samples": True}, "num_samples must be"),
        ({"file_name": "a", "num_samples": 0}, "num_samples must be"),
        ({"file_name": "a", "columns": []}, "columns must be an object"),
        ({"file_name": "a", "columns": {"prompt": 1}}, "prompt must be a string"),
        ({"file_name": "a", "tags": {"role_tag": ""}}, "role_tag must be a string"),
    ],
)
def test_what_is_wrong_is_refused_with_its_reason(entry: Any, reason: str) -> None:
    with pytest.raises(Refused, match=reason):
        parse("mine", entry)


def test_a_hub_goes_before_what_has_no_counterpart_and_before_a_file() -> None:
    entry = parse("mine", {"hf_hub_url": "a/b", "ms_hub_url": "c/d", "om_hub_url": "e/f", "file_name": "rows.json"})
    assert entry.hubs == {"modelscope": "c/d", "hf": "a/b"}
    assert entry.split == "train"


def test_a_directory_means_its_files_in_order(tmp_path: Path) -> None:
    for name in ("rows/b.json", "rows/a.json", "rows/.hidden", "rows/deeper/c.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_text("[]")
    assert [file.name for file in local_files(tmp_path, "rows")] == ["a.json", "b.json"]


@pytest.mark.parametrize("name", ["../outside.json", "/etc/hostname", "link.json", "folder", "up/../../outside.json"])
def test_what_leads_out_of_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "outside.json").write_text("[]")
    inside = tmp_path / "inside"
    (inside / "folder").mkdir(parents=True)
    (inside / "link.json").symlink_to(tmp_path / "outside.json")
    (inside / "folder" / "link.json").symlink_to(tmp_path / "outside.json")
    with pytest.raises(Refused, match="leads out of the folder"):
        local_files(inside, name)


@pytest.mark.parametrize("name", ["absent.json", "empty", "pipe"])
def test_what_is_not_there_is_skipped(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(Skipped):
        local_files(tmp_path, name)


@pytest.mark.parametrize("name", ["a\0b", "loop"])
def test_a_name_that_cannot_be_followed_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises((Refused, Skipped)):
        local_files(tmp_path, name)


@pytest.mark.parametrize(
    ("content", "reason"), [(None, "has no dataset_info.json"), ("{", "cannot be read"), ("[]", "not an object")]
)
def test_a_folder_without_a_readable_registry_is_told(tmp_path: Path, content: str | None, reason: str) -> None:
    if content is not None:
        (tmp_path / "dataset_info.json").write_text(content)
    with pytest.raises(Failure, match=reason):
        read(tmp_path)


def test_the_whole_registry_of_llama_factory_is_understood(shared_data: Path) -> None:
    skipped = {}
    for name, value in read(shared_data / "llamafactory_demo").items():
        try:
            parse(name, value)
        except Skipped as error:
            skipped[name] = str(error)
    assert skipped["mllm_demo"] == "images are not supported"
    assert len(skipped) == 13  # ten name images, three audios or videos only
    assert {reason.partition(" are ")[2] for reason in skipped.values()} == {"not supported"}


@pytest.mark.parametrize("form", ["array", "lines", "text"])
def test_a_sample_is_the_same_each_time_and_in_the_files_order(tmp_path: Path, form: str) -> None:
    rows = [{"n": n} for n in range(100)]
    lines = b"".join(orjson.dumps(row) + b"\n" for row in rows)
    content, name = {
        "array": (b"\xef\xbb\xbf " + orjson.dumps(rows), "rows.json"),
        "lines": (lines.replace(b"\n", b"\n\n").rstrip(b"\n"), "rows.json"),
        "text": (lines, "rows.txt"),
    }[form]
    (tmp_path / name).write_bytes(content)
    drawn = []
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        file = sample(tmp_path / name, 10, tmp_path / folder)
        drawn.append([json.loads(line)["n"] for line in file.read_text().splitlines()])
    assert drawn[0] == drawn[1] == sorted(set(drawn[0]))
    assert len(drawn[0]) == 10


def test_a_sample_of_no_more_rows_than_there_are_is_the_file(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("{}\n{}\n")
    assert sample(file, 2, tmp_path) == file


@pytest.mark.parametrize(("name", "content"), [("rows.csv", "a,b"), ("rows.jsonl.gz", ""), ("rows.json", "[1")])
def test_a_sample_of_anything_else_is_refused(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(Refused):
        sample(tmp_path / name, 1, tmp_path)
