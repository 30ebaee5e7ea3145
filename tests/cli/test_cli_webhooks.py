"""burnish webhooks."""

from __future__ import annotations

from tests.cli.conftest import Run
from tests.cli.terminal import table


def test_a_webhook_is_added_listed_looked_into_and_deleted(run: Run, dataset: str) -> None:
    (made,) = table(run("webhooks", "add", "https://example.org/hook", "--event", "job.created").stdout)
    id = made["id"]
    assert made["secret"].startswith("whsec_")
    (row,) = table(run("webhooks", "list").stdout)
    assert (row["id"], row["events"], row["enabled"]) == (id, '["job.created"]', "true")
    run("jobs", "create", "demo-base", dataset, "--json")
    (delivery,) = table(run("webhooks", "deliveries", id, "--status", "pending").stdout)
    assert (delivery["type"], delivery["attempts"]) == ("job.created", "0")
    assert run("webhooks", "delete", id).stderr == f"Deleted webhook https://example.org/hook ({id}).\n"
    assert table(run("webhooks", "list").stdout) == []


def test_a_webhook_is_disabled_and_enabled_again(run: Run) -> None:
    (made,) = table(run("webhooks", "add", "https://example.org/hook").stdout)
    (row,) = table(run("webhooks", "disable", made["id"]).stdout)
    assert row["enabled"] == "false"
    refused = run("webhooks", "test", made["id"])
    assert refused.exit_code == 1
    assert f"Hint: Enable it with `burnish webhooks enable {made['id']}`." in refused.stderr
    (row,) = table(run("webhooks", "enable", made["id"]).stdout)
    assert row["enabled"] == "true"
    assert run("webhooks", "test", made["id"]).exit_code == 0
    (rotated,) = table(run("webhooks", "rotate", made["id"]).stdout)
    assert rotated["secret"] != made["secret"]
    assert run("webhooks", "delete", made["id"]).exit_code == 0


def test_a_refusal_names_the_field(run: Run) -> None:
    refused = run("webhooks", "add", "http://10.0.0.1/")
    assert refused.exit_code == 1
    assert "Field: url" in refused.stderr
    assert "BURNISH_WEBHOOK_NETWORKS" in refused.stderr
