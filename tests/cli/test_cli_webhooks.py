"""burnish webhooks."""

from __future__ import annotations

from tests.cli.conftest import Run


def test_a_webhook_is_added_listed_looked_into_and_deleted(run: Run, dataset: str) -> None:
    id, secret = run("webhooks", "add", "https://example.org/hook", "--event", "job.created").stdout.split()
    assert secret.startswith("whsec_")
    assert run("webhooks", "list").stdout.split("\t")[:4] == [id, "https://example.org/hook", '["job.created"]', "true"]
    run("jobs", "create", "demo-base", dataset, "--json")
    assert run("webhooks", "deliveries", id, "--status", "pending").stdout.split("\t")[1:4] == [
        "job.created", "pending", "0",
    ]  # fmt: skip
    assert run("webhooks", "delete", id).exit_code == 0
    assert id not in run("webhooks", "list").stdout


def test_a_refusal_names_the_field(run: Run) -> None:
    refused = run("webhooks", "add", "http://10.0.0.1/")
    assert refused.exit_code == 1
    assert "Field: url" in refused.stderr
    assert "BURNISH_WEBHOOK_NETWORKS" in refused.stderr
