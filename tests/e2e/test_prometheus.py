"""Prometheus' own checker on our metrics, and on the alert rules and the dashboard that
come with them. `.ci/prometheus` brings the checker.
"""

import json
import re
import subprocess

import pytest
import requests
from nf import ROOT, Serve, eventually

MONITORING = ROOT / "cluster/monitoring"
BODY = {"tenant_id": "t1", "model_id": "m1", "model_version": "v1", "resources": {"gpu": 1}}


@pytest.fixture(scope="module")
def promtool():
    folder = subprocess.run([str(ROOT / ".ci/prometheus")], capture_output=True, text=True, check=True).stdout.strip()
    return f"{folder}/promtool"


def expressions():
    """Every expression of the rules and the dashboard, where a reader finds it."""
    rules = (MONITORING / "alerts.yml").read_text()
    board = json.loads((MONITORING / "dashboard.json").read_text())
    shown = [(panel["title"], target["expr"]) for panel in board["panels"] for target in panel["targets"]]
    return [("alerts.yml", rules), *shown]


def test_promtool_accepts_the_metrics(tmp_path, promtool):
    with Serve(tmp_path) as group:
        assert group.call("POST", "/schedule", BODY).status_code == 201
        metrics = group.call("GET", "/metrics").text
        done = subprocess.run([promtool, "check", "metrics"], input=metrics, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        assert 'nf_sched_requests_total{phase="placed",tenant="t1"} 1' in metrics


@pytest.mark.parametrize("command", [("check", "config", "prometheus.yml"), ("test", "rules", "alerts_test.yml")])
def test_the_rules_say_what_their_tests_expect(promtool, command):
    done = subprocess.run([promtool, *command], cwd=MONITORING, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_each_alert_has_a_runbook():
    titles = set(re.findall(r"^## (\w+)$", (MONITORING / "runbooks.md").read_text(), re.M))
    alerts = re.findall(r"alert: (\w+)", (MONITORING / "alerts.yml").read_text())
    links = re.findall(r"runbooks.md#(\w+)", (MONITORING / "alerts.yml").read_text())
    assert alerts and titles == set(alerts)
    assert links == [alert.lower() for alert in alerts]


def test_every_family_that_is_asked_for_is_told(tmp_path):
    """A rule on a family that nobody exports would never fire, and nobody would notice."""
    rare = {"nf_model_verify_failures_total", "nf_alarms"}  # appear with the first refused file of models or keys
    with Serve(tmp_path, {"NF_SCALE_EVERY": "200ms"}) as group:
        scaling = {"min": 1, "max": 2, "concurrency": 2}
        group.call("POST", "/schedule", {**BODY, "resources": {"gpu": 0.1}, "scaling": scaling})
        group.call("POST", "/schedule", {**BODY, "model_id": "m2", "resources": {"gpu": 500}})
        call = {"json": {"model": "m1", "prompt": "x"}, "timeout": 60}
        assert requests.post(f"{group.url()}/v1/completions", **call).status_code == 200
        asked = {name for _, text in expressions() for name in re.findall(r"\bnf_\w+", text)}
        plain = {re.sub(r"_(bucket|sum|count)$", "", name) for name in asked} - rare
        told = lambda: set(re.findall(r"^# TYPE (nf_\w+) ", group.call("GET", "/metrics").text, re.M))  # noqa: E731
        eventually("all are told", lambda: not plain - told())
