"""An agent is killed and its whole data directory is lost while its replicas serve. The next agent
ends what was left, starts the default kind at once, and what must never run twice no sooner than a
lease after it has registered.
"""

import shutil
import signal
import time

import requests
from nf import eventually, holds
from worker import BUDGET, LEASE, alive, lab


def test_what_must_never_run_twice_waits_a_lease_when_the_data_directory_is_lost(tmp_path):
    with lab(tmp_path) as group:
        for job, more in (("default", {}), ("only", {"exclusive": True})):
            group.schedule(job, constraints={"node": "w1", **more})
        before = {job: group.replicas(job)[0] for job in ("default", "only")}
        old = group.pids()
        assert len(old) == 2
        group.end(signal.SIGKILL)
        shutil.rmtree(tmp_path / "worker/data")
        began = time.monotonic()
        group.start()
        eventually("what was left is ended", lambda: not any(alive(pid) for pid in old), 15)
        now = eventually("the default kind is there again", lambda: [
            r for r in group.member.job("default")["replicas"]
            if r["generation"] > before["default"]["generation"] and r["status"] == "Ready"], 30)
        assert time.monotonic() - began < LEASE / 2 and now
        metrics = requests.get(f"http://127.0.0.1:{group.own}/metrics", timeout=5).text
        assert 'nf_alarms{kind="exclusive_waits"} 1' in metrics
        assert requests.get(f"http://127.0.0.1:{group.own}/health", timeout=5).json()["components"]["agent"]["status"] == "degraded"
        holds("the other waits", lambda: len(group.pids()) == 1, began + LEASE + BUDGET - 1 - time.monotonic())
        eventually("it is started when nothing of it can be left", lambda: len(group.pids()) == 2, 20)
        only = eventually("ready", lambda: [r for r in group.member.job("only")["replicas"] if r["status"] == "Ready"], 20)[0]
        assert only["generation"] > before["only"]["generation"]
        metrics = requests.get(f"http://127.0.0.1:{group.own}/metrics", timeout=5).text
        assert 'nf_alarms{kind="exclusive_waits"} 0' in metrics
        group.stop("default", "only")
