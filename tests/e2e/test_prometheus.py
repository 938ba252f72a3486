"""Prometheus' own checker on our metrics. `.ci/promtool` brings the checker."""

import subprocess

from nf import ROOT, Serve

BODY = {"tenant_id": "t1", "model_id": "m1", "model_version": "v1", "resources": {"gpu": 1}}


def test_promtool_accepts_the_metrics(tmp_path):
    promtool = subprocess.run([str(ROOT / ".ci/promtool")], capture_output=True, text=True, check=True).stdout.strip()
    with Serve(tmp_path) as group:
        assert group.call("POST", "/schedule", BODY).status_code == 201
        metrics = group.call("GET", "/metrics").text
        done = subprocess.run([promtool, "check", "metrics"], input=metrics, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        assert 'nf_sched_requests_total{phase="placed",tenant="t1"} 1' in metrics
