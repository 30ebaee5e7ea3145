"""What training would make of a dataset: lengths, cuts, refusals, and rows that are in another dataset too."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from app.datasets.canonical import SCHEMAS
from tests.conftest import DEMO_BASE
from tests.datasets.helpers import CHAT, refusal
from worker.renderer.overlap import overlap
from worker.renderer.sampling import sample

Upload = Callable[..., httpx.Response]
Check = Callable[..., httpx.Response]

WORDS = [f"word{n}" for n in range(60)]
STORY = " ".join(WORDS)
STORY_RETOLD = " ".join([*WORDS[:-2], "other", "end"])  # 54 of 58 5-grams of 56 + 4
HALF_STORY = " ".join([*WORDS[:30], *(f"new{n}" for n in range(30))])
CHINESE = "今天天气很好我们去公园散步看见很多人在湖边唱歌跳舞大家都很开心"
CHINESE_RETOLD = CHINESE[:-1] + "乐"


def chat(question: str, answer: str = "Yes.", system: str | None = None) -> dict[str, Any]:
    turns = [("system", system), ("user", question), ("assistant", answer)]
    return {"messages": [{"role": role, "content": text} for role, text in turns if text is not None]}


@pytest.fixture
def check(client: httpx.Client, upload: Upload) -> Check:
    """Uploads rows and checks them."""

    def ask(rows: list[Any], kind: str = "auto", **body: Any) -> httpx.Response:
        made = upload(rows, kind=kind)
        assert made.status_code in (200, 201), made.text
        return client.post(f"/datasets/{made.json()['id']}/check", json={"base_model": "demo-base"} | body)

    return ask


def test_tokens_are_counted_and_spread(check: Check) -> None:
    rows = [chat("a " * n, "b") for n in range(1, 41)]
    body = check(rows).json()
    tokens = body.pop("tokens")
    body.pop("dataset")
    assert body == {
        "object": "dataset.check",
        "base_model": "demo-base",
        "max_length": 2048,
        "rows": 40,
        "rows_checked": 40,
        "cut": {"rows": 0, "tokens": 0, "end_of_turn": 0},
        "without_loss": 0,
        "template": {"generation_markers": True, "refused_rows": 0, "first_refusal": None},
        "overlap": None,
    }
    assert tokens["loss"] == 40 * 2  # "b" and the end-of-turn token
    assert tokens["loss_share"] == pytest.approx(tokens["loss"] / tokens["total"], abs=1e-4)
    assert tokens["mean"] == pytest.approx(tokens["total"] / 40, abs=0.1)
    assert tokens["min"] < tokens["p50"] < tokens["p90"] < tokens["p99"] <= tokens["max"]
    bins = tokens["histogram"]
    assert len(bins) <= 16
    assert sum(each["rows"] for each in bins) == 40
    assert [each["to"] for each in bins[:-1]] == [each["from"] for each in bins[1:]]
    assert bins[-1]["from"] <= tokens["max"] < bins[-1]["to"]


def test_cuts_and_lost_ends_are_counted(check: Check) -> None:
    kept_end = {"messages": [*chat("a")["messages"], *chat("b " * 60)["messages"]]}
    rows = [chat("short"), chat("a", "b " * 60), chat("a " * 60), kept_end]
    body = check(rows, max_length=32).json()
    assert body["cut"]["rows"] == 3
    assert body["cut"]["end_of_turn"] == 3
    assert body["cut"]["tokens"] == body["tokens"]["total"] - (3 * 32 + body["tokens"]["min"])
    assert body["without_loss"] == 1


def test_refused_rows_are_counted_and_the_first_told(check: Check, client: httpx.Client) -> None:
    template = (DEMO_BASE / "chat_template.jinja").read_text()
    guard = "{% if messages[0].role == 'system' %}{{ raise_exception('No system here.') }}{% endif %}"
    client.post("/models", json={"name": "no-system", "source": str(DEMO_BASE), "chat_template": guard + template})
    body = check([CHAT, chat("a", system="b"), chat("c", system="d")], base_model="no-system").json()
    assert body["template"] == {
        "generation_markers": True,
        "refused_rows": 2,
        "first_refusal": "Row 1: No system here.",
    }
    assert body["rows_checked"] == 3


@pytest.mark.parametrize(
    ("kind", "row", "without_loss"),
    [("text", {"text": STORY}, 0), ("prompts", {"messages": chat(STORY)["messages"][:1]}, 0)],
)
def test_other_kinds_are_counted_too(check: Check, kind: str, row: dict[str, Any], without_loss: int) -> None:
    body = check([row], kind=kind).json()
    assert body["tokens"]["total"] > 60
    assert body["without_loss"] == without_loss


def test_overlap_finds_equal_and_near_rows(check: Check, upload: Upload) -> None:
    validation = upload([chat("Not there."), chat(STORY), chat(CHINESE), chat(HALF_STORY)], name="validation").json()[
        "id"
    ]
    rows = [
        chat("Something else."),
        chat(f"  {STORY.upper()}\n", "yes."),
        chat(STORY_RETOLD, system="The same for all. " * 50),
        chat(CHINESE_RETOLD),
        chat("Also not there.", system="The same for all. " * 50),
    ]
    found = check(rows, validation=validation).json()["overlap"]
    assert (found["exact"], found["near"]) == (1, 2)
    assert [(pair["row"], pair["validation_row"]) for pair in found["pairs"]] == [(1, 1), (2, 1), (3, 2)]
    assert found["pairs"][0]["similarity"] == 1.0
    assert all(0.8 <= pair["similarity"] < 1.0 for pair in found["pairs"][1:])


def test_what_is_not_there_is_named(check: Check) -> None:
    assert refusal(check([CHAT], validation="ds_0"), 422, "dataset_not_found")["param"] == "validation"
    refusal(check([CHAT], base_model="nothing"), 422, "model_not_found")


def write_texts(path: Path, texts: list[str]) -> str:
    pq.write_table(pa.Table.from_pylist([{"text": text} for text in texts], SCHEMAS["text"]), path, row_group_size=700)
    return str(path)


def test_a_sample_is_even_and_the_same_each_time(tmp_path: Path) -> None:
    path = write_texts(tmp_path / "rows", [str(n) for n in range(5003)])
    drawn = list(sample(path, 1000))
    assert drawn == list(sample(path, 1000))
    assert all(row["text"] == str(number) for number, row in drawn)
    numbers = [number for number, _ in drawn]
    assert len(numbers) == 1000
    assert {b - a for a, b in pairwise(numbers)} == {5, 6}
    assert [number for number, _ in sample(path, 9999)] == list(range(5003))


def test_the_index_finds_every_near_row_that_comparing_all_finds(tmp_path: Path) -> None:
    random.seed(1)
    texts = [" ".join(random.choices("abcdefghij", k=random.randint(1, 40))) for _ in range(150)]
    changed = [" ".join(text.split()[: max(1, len(text.split()) - random.randint(0, 6))]) for text in texts]

    def grams(text: str) -> set[tuple[str, ...]]:
        words = text.split()
        return {tuple(words[i : i + 5]) for i in range(max(1, len(words) - 4))}

    def similarity(one: str, other: str) -> float:
        return len(grams(one) & grams(other)) / len(grams(one) | grams(other))

    near = {i for i, one in enumerate(changed) if any(similarity(one, other) >= 0.8 for other in texts)}
    found = overlap(write_texts(tmp_path / "a", changed), "text", write_texts(tmp_path / "b", texts), "text")
    assert found["exact"] + found["near"] == len(near)
    assert {pair["row"] for pair in found["pairs"]} == set(sorted(near)[:100])
