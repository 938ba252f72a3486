"""Prometheus' own checker on our metrics, and on the alert rules and the dashboard that
come with them; and a real Prometheus, configured as we ship it, that scrapes a group under
load and answers every expression. `.ci/prometheus` brings both.
"""

import json
import math
import re
import subprocess
import threading
from contextlib import contextmanager

import pytest
import requests
from nf import ROOT, Dev, Serve, eventually, free_port
from servers import running

MONITORING = ROOT / "cluster/monitoring"
BODY = {"tenant_id": "t1", "model_id": "m1", "model_version": "v1", "resources": {"gpu": 1}}


@pytest.fixture(scope="module")
def tools():
    return subprocess.run([str(ROOT / ".ci/prometheus")], capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture(scope="module")
def promtool(tools):
    return f"{tools}/promtool"


def shown():
    """Every expression of the dashboard, by the title of its panel."""
    board = json.loads((MONITORING / "dashboard.json").read_text())
    return [(panel["title"], target["expr"]) for panel in board["panels"] for target in panel["targets"]]


def expressions():
    """Every expression of the rules and the dashboard, where a reader finds it."""
    return [("alerts.yml", (MONITORING / "alerts.yml").read_text()), *shown()]


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
        promise = {"error_rate": 0.01}
        group.call("POST", "/schedule", {**BODY, "resources": {"gpu": 0.1}, "scaling": scaling, "constraints": promise})
        group.call("POST", "/schedule", {**BODY, "model_id": "m2", "resources": {"gpu": 500}})
        call = {"json": {"model": "m1", "prompt": "x"}, "timeout": 60}
        assert requests.post(f"{group.url()}/v1/completions", **call).status_code == 200
        asked = {name for _, text in expressions() for name in re.findall(r"\bnf_\w+", text)}
        plain = {re.sub(r"_(bucket|sum|count)$", "", name) for name in asked} - rare
        told = lambda: set(re.findall(r"^# TYPE (nf_\w+) ", group.call("GET", "/metrics").text, re.M))  # noqa: E731
        eventually("all are told", lambda: not plain - told())


def shipped(folder, urls):
    """The configuration as it is shipped, with a group's addresses, and looking every second."""
    text = (MONITORING / "prometheus.yml").read_text()
    for number, url in enumerate(urls, 1):
        text = text.replace(f"node-{number}.example:8600", url.removeprefix("http://"))
    text = text.replace("15s", "1s")
    assert "example" not in text and text.count("1s") == 2, text
    folder.mkdir()
    (folder / "alerts.yml").write_text((MONITORING / "alerts.yml").read_text())
    (folder / "prometheus.yml").write_text(text)
    return folder / "prometheus.yml"


@contextmanager
def load(group):
    """Requests to two models through every member, one of which promises what nobody can keep; and jobs that come and go."""
    end, failures = threading.Event(), []

    def call(url, model):
        session = requests.Session()
        # The longer the prompt, the longer it takes: far longer than a millisecond.
        body = {"model": model, "prompt": "x" * (200_000 if model == "late" else 1)}
        while not end.wait(0.05):
            answer = session.post(f"{url}/v1/completions", json=body, timeout=60)
            if answer.status_code != 200:
                failures.append(answer.text)

    def schedule():
        while not end.wait(0.5):
            answer = group.call("POST", "/schedule", {**BODY, "tenant_id": "t2", "resources": {"gpu": 0.01}})
            if answer.status_code != 201:
                failures.append(answer.text)
            else:
                group.call("DELETE", f"/schedule/{answer.json()['request_id']}")

    threads = [threading.Thread(target=call, args=(url, model)) for url in group.urls for model in ("kept", "late")]
    threads.append(threading.Thread(target=schedule))
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        end.set()
        for thread in threads:
            thread.join()
    assert not failures, failures[:3]


def test_a_real_prometheus_answers_every_expression_that_we_ship(tmp_path, tools):
    scaling = {"min": 1, "max": 2, "concurrency": 2}
    with Dev(tmp_path / "group", args=["--set", "scale_every=500ms", "--set", "scale_settle=6s"]) as group:
        for model, promise in (("kept", 60_000), ("late", 1)):
            job = {**BODY, "model_id": model, "resources": {"gpu": 0.1}, "scaling": scaling, "constraints": {"latency_ms": promise}}
            group.wait_state(group.call("POST", "/schedule", job).json()["request_id"], "Running")
        assert group.call("POST", "/schedule", {**BODY, "model_id": "waits", "resources": {"gpu": 500}}).status_code == 202

        url = f"http://127.0.0.1:{free_port()}"
        args = [f"{tools}/prometheus", "--config.file", shipped(tmp_path / "prometheus", group.urls)]
        args += ["--storage.tsdb.path", tmp_path / "tsdb", f"--web.listen-address={url[7:]}"]
        ready = lambda: requests.get(f"{url}/-/ready", timeout=2).ok  # noqa: E731

        def ask(path, **parameters):
            answer = requests.get(f"{url}/api/v1/{path}", params=parameters, timeout=10).json()
            assert answer["status"] == "success" and not answer.get("warnings"), (parameters, answer)
            return answer["data"]

        def numbers(expression):
            """What an expression comes to now, with every tenant and model chosen, as the dashboard opens."""
            text = expression.replace("$tenant", ".*").replace("$model", ".*")
            assert "$" not in text, text
            return [float(sample["value"][1]) for sample in ask("query", query=text)["result"]]

        def fires(name):
            rules = [rule for group in ask("rules")["groups"] for rule in group["rules"]]
            assert all(rule["health"] == "ok" for rule in rules), [rule.get("lastError") for rule in rules]
            return rules and numbers(name)

        with running(args, tmp_path / "log", ready), load(group):
            for title, expression in shown():
                eventually(title, lambda text=expression: (said := numbers(text)) and all(map(math.isfinite, said)), 60)
            found = {"query": 'count by (tenant, model) (up{job="nf-replicas"} == 1)'}
            series = lambda: {s["metric"]["model"] for s in ask("query", **found)["result"]}  # noqa: E731
            eventually("it finds the replicas by /sd/prometheus, with their names", lambda: series() == {"kept", "late"}, 60)
            burns = 'sum by (model) (nf:slo_bad:ratio_rate5m{model="late"}) > 0.5'
            eventually("the rules are evaluated without an error, and see who breaks its promise", lambda: fires(burns), 60)
            assert numbers('nf:slo_bad:ratio_rate5m{model="kept"} > 0.5') == []
            for name in ("tenant", "model"):
                chosen = ask(f"label/{name}/values", **{"match[]": "nf_replicas"})
                assert {"tenant": "t1", "model": "kept"}[name] in chosen, chosen
