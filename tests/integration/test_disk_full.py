"""A member's disk is full: it ends and says why, what it runs goes on, and it starts again once there is room."""

import contextlib
import json
import os
import subprocess

import nf
import pytest
import requests
from worker import end_all, processes

SIZE, ROOM = 40 << 20, 8 << 20  # of the disk, and what is left of it when the member starts


@contextlib.contextmanager
def disk(folder):
    """A disk of its own, almost full: a log that finds room enough takes some in advance."""
    folder.mkdir(parents=True)
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", folder], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip(f"no disk of its own to be had here: {mounted.stderr.decode().strip()}")
    try:
        (folder / "filler").write_bytes(bytes(SIZE - ROOM))
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def fill(folder):
    with open(folder / "rest", "wb", buffering=0) as rest, contextlib.suppress(OSError):
        while rest.write(bytes(4096)) == 4096:
            pass


def publish(folder, store):
    """A version whose replica answers on its port, with a program that every test machine has."""
    serve = ["{python}", "-m", "http.server", "{port}", "--bind", "{host}", "--directory", "{dir}"]
    (folder / "runtime.json").write_text(json.dumps({"argv": serve, "ready": {"path": "/"}}))
    (folder / "m").mkdir()
    (folder / "m/weights.onnx").write_bytes(b"weights")
    named = ["--model", "m", "--version", "v1", "--runtime", folder / "runtime.json", "--store", f"file://{store}"]
    command = [nf.NF, "model", "publish", folder / "m", *named]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def ask(group):
    body = {"tenant_id": "demo", "model_id": "m", "model_version": "v1", "resources": {"cpu": 0.1}}
    answer = group.call("POST", "/schedule", body)
    assert answer.status_code == 201, answer.text
    return answer.json()["request_id"]


@pytest.fixture
def folder(tmp_path):
    yield tmp_path
    end_all(tmp_path)


def test_a_member_whose_disk_is_full_ends_and_starts_again(folder):
    tmp_path = folder
    store = tmp_path / "store"
    publish(tmp_path, store)
    data = tmp_path / "data"
    with disk(data / "raft") as full:
        settings = {"NF_DATA_DIR": data, "NF_RUN_DIR": tmp_path / "runs", "MODEL_STORE_URL": f"file://{store}"}
        with nf.Serve(tmp_path / "serve", settings) as group:
            request = ask(group)
            job = group.wait_state(request, "Running")
            pids = processes("http.server", str(tmp_path))
            assert pids, "the replica is a process"
            fill(full)

            def ended():
                with contextlib.suppress(requests.RequestException):
                    group.call("POST", "/tenants", {"tenant_id": f"t{os.urandom(6).hex()}"}, timeout=2)
                return group.child.poll() is not None

            nf.eventually("the member ends", ended, 60)
            assert group.child.returncode != 0
            assert "stopping" in group.output and "No space left on device" in group.output, group.output[-2000:]
            assert processes("http.server", str(tmp_path)) == pids, "what it runs goes on"
        (full / "filler").unlink()
        (full / "rest").unlink()
        with nf.Serve(tmp_path / "again", settings) as group:
            again = group.wait_state(request, "Running")
            assert again["replicas"][0]["generation"] == job["replicas"][0]["generation"], again
            assert processes("http.server", str(tmp_path)) == pids, "adopted"
            ask(group)
