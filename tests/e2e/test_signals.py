"""A real Prometheus scrapes the replicas of a real group, and the leader scales by what it
says; while it says nothing, or nonsense, nothing is taken away. With NF_LONG (make soak)
it says nothing for ten minutes.
"""

import http.server
import os
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
import requests
from nf import ROOT, Dev, eventually, free_port, holds

SCALING = {"min": 1, "max": 4, "concurrency": 2, "max_wait": "200ms", "cold_start": "1s", "idle": "3s"}
JOB = {"tenant_id": "t1", "model_id": "m1", "model_version": "v1", "resources": {"gpu": 0.1}, "scaling": SCALING}
# Seconds of each; without load a service goes down after a minute and a bit.
SILENCE, NONSENSE = (600, 90) if os.environ.get("NF_LONG") else (50, 50)


@pytest.fixture(scope="module")
def prometheus():
    folder = subprocess.run([str(ROOT / ".ci/prometheus")], capture_output=True, text=True, check=True).stdout.strip()
    return f"{folder}/prometheus"


@contextmanager
def running(prometheus, folder, port, members):
    """A Prometheus on `port` that finds the replicas by `/sd/prometheus`."""
    urls = "\n".join(f"      - url: {url}/sd/prometheus?consistency=stale\n        refresh_interval: 1s" for url in members)
    config = f"global: {{ scrape_interval: 1s }}\nscrape_configs:\n  - job_name: r\n    http_sd_configs:\n{urls}\n"
    (folder / "prometheus.yml").write_text(config)
    args = ["--config.file", str(folder / "prometheus.yml"), "--storage.tsdb.path", str(folder / "tsdb")]
    with (folder / "prometheus.log").open("ab") as log:
        child = subprocess.Popen([prometheus, *args, f"--web.listen-address=127.0.0.1:{port}"], stdout=log, stderr=log)
    try:
        eventually("Prometheus is ready", lambda: requests.get(f"http://127.0.0.1:{port}/-/ready", timeout=1).ok, 30)
        yield child
    finally:
        child.terminate()
        child.wait(timeout=20)


@contextmanager
def nonsense(port):
    """Somebody on `port` who answers every question with something else."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"<html>bad gateway</html>")

        do_POST = do_GET

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def load(address, clients):
    """Requests that go straight to one replica, past every gateway."""
    end = threading.Event()

    def call():
        session = requests.Session()
        while not end.is_set():
            assert session.post(f"http://{address}/v1/completions", json={"prompt": "x"}, timeout=30).ok

    with ThreadPoolExecutor(clients) as pool:
        calls = [pool.submit(call) for _ in range(clients)]
        try:
            yield
        finally:
            end.set()
        assert [c.result() for c in calls] == [None] * clients


def test_prometheus_scales_and_its_silence_takes_nothing_away(tmp_path, prometheus):
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    args = ["--set", "scale_every=500ms", "--set", "scale_settle=6s", "--set", f"prom_url={url}"]
    with Dev(tmp_path / "group", args=args) as group:
        with running(prometheus, tmp_path, port, group.urls):
            job = group.call("POST", "/schedule", JOB).json()["request_id"]
            ready = lambda: group.job(job)["ready"]  # noqa: E731
            eventually("it serves", lambda: ready() == 1)
            asked = {"query": 'sum by (tenant, model) (nf_model_requests_running)'}
            found = lambda: requests.get(f"{url}/api/v1/query", params=asked, timeout=5).json()["data"]["result"]  # noqa: E731
            sample = eventually("Prometheus has found the replica", found, 30)[0]
            assert sample["metric"] == {"tenant": "t1", "model": "m1"}, sample
            with load(group.job(job)["replicas"][0]["placement"]["address"], 12):
                eventually("it grows by what Prometheus says", lambda: ready() >= 3, 90)
        # Gone at the peak, and then somebody else answers nonsense in its place.
        most = ready()
        fallen = lambda: ready() < most  # noqa: E731
        holds("Prometheus is gone, and nothing is taken away", lambda: not fallen(), SILENCE)
        with nonsense(port):
            holds("nonsense is answered, and nothing is taken away", lambda: not fallen(), NONSENSE)
        with running(prometheus, tmp_path, port, group.urls):
            eventually("it falls once there is somebody to say that nothing is left to do", fallen, 180)
