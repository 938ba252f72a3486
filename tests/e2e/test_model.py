"""A real model on a real process: magika's ONNX network, published to a store,
scheduled with curl through a follower, answering while its leader is killed. One
flipped byte in the model is refused, with the reason.
"""

import json
import os
import shutil
import subprocess
import threading
import time
from pathlib import Path

import pytest
import requests
from nf import ROOT, Dev, eventually

EXAMPLE = ROOT / "docs/examples/onnx"
BODY = {"tenant_id": "t1", "model_id": "magika", "model_version": "v1", "resources": {"gpu": 1}}


@pytest.fixture(scope="module")
def magika():
    """python, model and config, fetched by the script that people use, too."""
    told = subprocess.run(["sh", str(ROOT / "tests/e2e/fetch_magika.sh")], capture_output=True, text=True, check=True)
    return {key: Path(value) for key, value in (line.split("=", 1) for line in told.stdout.splitlines())}


@pytest.fixture(scope="module")
def group(tmp_path_factory, magika):
    with Dev(tmp_path_factory.mktemp("model"), {"NF_PYTHON": magika["python"]}) as group:
        files = group.folder / "magika"
        files.mkdir()
        for file in (magika["model"], magika["config"], EXAMPLE / "onnx_server.py"):
            shutil.copy(file, files)
        runtime = group.folder / "runtime.json"
        runtime.write_text(json.dumps({
            "argv": ["{python}", "{file:onnx_server.py}", "{file:model.onnx}", "{file:config.min.json}", "{host}", "{port}"],
            "ready": {"path": "/health", "timeout_s": 60},
        }))
        for version in ("v1", "v2"):
            group.nf("model", "publish", str(files), "--model", "magika", "--version", version, "--runtime", str(runtime))
        yield group


def follower(group):
    return (group.leader() + 1) % len(group.urls)


def curl(url, body):
    """As a person would: curl, and nothing else."""
    args = ["curl", "-sS", "-w", "\n%{http_code}", "-H", "content-type: application/json", "-d", json.dumps(body), url]
    done = subprocess.run(args, capture_output=True, text=True, timeout=30, check=True)
    text, status = done.stdout.rsplit("\n", 1)
    return int(status), json.loads(text)


def label(address):
    source = (ROOT / "src/core/state.rs").read_bytes()
    return requests.post(f"http://{address}/infer", data=source, timeout=10).json()


def process_of(address):
    """Who listens there: the replica's own pid, from the kernel and not from us."""
    port = int(address.rsplit(":", 1)[1])
    inodes = set()
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        columns = line.split()
        if columns[3] == "0A" and int(columns[1].split(":")[1], 16) == port:
            inodes.add(columns[9])
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            target = os.readlink(link)
        except OSError:
            continue
        if target.startswith("socket:[") and target[8:-1] in inodes:
            return int(link.parts[2])
    raise AssertionError(f"nobody listens on {address}")


def alive(pid):
    """A zombie is gone: its member was killed, so whether it is reaped is up to pid 1, which in a container may never do it."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


class Asker(threading.Thread):
    """Asks the model without pause, and keeps what went wrong."""

    def __init__(self, address):
        super().__init__(daemon=True)
        self.address, self.answers, self.failures, self.over = address, 0, [], threading.Event()

    def run(self):
        while not self.over.is_set():
            try:
                assert label(self.address)["label"] == "rust"
                self.answers += 1
            except (requests.RequestException, AssertionError, ValueError) as error:
                self.failures.append(f"{time.time():.3f} {error!r}")

    def end(self):
        self.over.set()
        self.join(20)
        return self.answers, self.failures


@pytest.fixture(scope="module")
def replica(group):
    """The job that the tests below look at, scheduled with curl through a follower."""
    status, answer = curl(f"{group.url(follower(group))}/schedule", {**BODY, "request_id": "magika-1"})
    assert status == 201, answer
    job = group.wait_state("magika-1", "Running", limit=90)
    return job["placement"]["address"]


def test_a_real_process_labels_a_rust_source(group, replica):
    answer = label(replica)
    assert answer["label"] == "rust" and answer["score"] > 0.5, answer
    job = group.job("magika-1")
    assert job["runtime"] == "process" and len(job["manifest_sha256"]) == 64
    pid = process_of(replica)
    environment = Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
    names = {pair.split("=", 1)[0] for pair in environment if pair}
    assert "CUDA_VISIBLE_DEVICES" in names, "it is shown its own devices"
    assert not names & {"NF_VENV", "MODEL_STORE_URL", "XDG_CONFIG_HOME"}, "its environment is its own"
    assert os.getpgid(pid) != os.getpgid(group.child.pid), "it has a process group of its own"
    assert group.nf("logs", "magika-1") is not None


def test_killing_the_leader_touches_nothing_that_serves(group, replica):
    pid, leader = process_of(replica), group.leader()
    asker = Asker(replica)
    asker.start()
    eventually("the model answers", lambda: asker.answers > 3)
    group.kill(leader)
    member = (leader + 1) % len(group.urls)

    def next_schedule():
        status, answer = curl(f"{group.url(member)}/schedule", {**BODY, "request_id": "magika-2"})
        assert status in (200, 201), answer
        return answer

    eventually("the next schedule works", next_schedule, 10)
    assert group.job("magika-1", member)["state"] == "Running", "the job is still there"
    seen = asker.answers
    eventually("it goes on answering with its member dead", lambda: asker.answers > seen + 10)
    # Well before the node would be Down, when its jobs rightly start elsewhere.
    group.restart(leader)
    group.wait_state("magika-2", "Running", limit=90)
    group.wait_state("magika-1", "Running", limit=30)
    seen = asker.answers
    eventually("and after its member is back", lambda: asker.answers > seen + 10)
    answers, failures = asker.end()
    assert failures == [], f"{len(failures)} of {answers} failed: {failures[:3]}"
    assert process_of(replica) == pid and alive(pid), "the same process throughout"
    assert group.job("magika-1")["replicas"][0]["generation"] == 1, "and never launched again"


def test_a_flipped_byte_is_refused_with_the_reason(group):
    stored = [f for f in (group.store / "magika/v2").rglob("model.onnx")]
    assert stored, f"the store holds {[str(f) for f in group.store.rglob('*')]}"
    content = bytearray(stored[0].read_bytes())
    content[len(content) // 2] ^= 1
    stored[0].write_bytes(content)
    # In the nodes' caches lies the same file, fetched for v1 under its right digest; a copy of that is no help.
    for cached in group.data.rglob("sha256/*"):
        if cached.is_file() and cached.stat().st_size == len(content):
            cached.unlink()
    status, answer = curl(f"{group.url(0)}/schedule", {**BODY, "tenant_id": "t2", "model_version": "v2", "request_id": "magika-bad"})
    assert status in (201, 422), answer
    if status == 422:
        assert answer["reason"] == "ArtifactMismatch"
        return
    job = group.wait_state("magika-bad", "Failed", limit=60)
    assert job["replicas"][0]["why"] == "ArtifactMismatch", job["replicas"]
    partial = [f for f in group.data.rglob("*") if f.is_file() and f.suffix in (".tmp", ".partial")]
    assert partial == [], "nothing half-fetched stays behind"


def test_stopping_leaves_no_process(group, replica):
    pid = process_of(replica)
    for request_id in ("magika-1", "magika-2"):
        group.nf("stop", request_id, "--yes")
        group.wait_state(request_id, "Cancelled", limit=60)
    eventually("the process is gone", lambda: not alive(pid), 30)
