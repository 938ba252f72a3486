"""A worker's agent that is stopped, killed and frozen while its replicas serve real
requests: what may run twice goes on, what must not ends in time, and nobody has two
generations at once, as the replicas' own logs show.
"""

import json
import os
import signal
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import requests
from nf import Process, Serve, eventually, free_port

# Answers /health, and writes one line for each other request that it answers.
SERVER = """
import http.server, os, sys, time
class H(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path != "/health":
            with open(os.environ["REQUESTS"], "a") as log:
                log.write(f"{os.getpid()} {time.time():.3f}\\n")
        self.send_response(200); self.send_header("content-length", "0"); self.end_headers()
    def log_message(self, *a): pass
http.server.ThreadingHTTPServer((sys.argv[1], int(sys.argv[2])), H).serve_forever()
"""
LEASE, BUDGET, DOWN = 31.2, 1.0, 38.0  # seconds: the shortest that nf allows


def alive(pid):
    """A zombie is gone: who reaps it is up to its parent, which these tests freeze and kill."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def processes(text):
    """Who has that text in the command line, by the kernel's word."""
    found = []
    for line in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = line.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if text in words and int(line.parent.name) != os.getpid() and alive(int(line.parent.name)):
            found.append(int(line.parent.name))
    return sorted(found)


class Asker(threading.Thread):
    """Asks one replica without pause, as a client that follows no watch would."""

    def __init__(self, address):
        super().__init__(daemon=True)
        self.url, self.answers, self.failures = f"http://{address}/infer", 0, []
        self.over = threading.Event()
        self.last = time.monotonic()
        self.start()

    def run(self):
        while not self.over.wait(0.02):
            try:
                assert requests.get(self.url, timeout=5).status_code == 200
                self.answers, self.last = self.answers + 1, time.monotonic()
            except (requests.RequestException, AssertionError) as error:
                self.failures.append(f"{time.time():.3f} {error!r}")

    def end(self):
        self.over.set()
        self.join(20)
        return self.failures


class Lab:
    """A member, and a worker that can be started again on the same data."""

    def __init__(self, folder):
        self.folder, self.peer, self.own = folder, free_port(), free_port()
        self.requests = folder / "requests"
        times = {"NF_LEASE": f"{int(LEASE * 1000)}ms", "NF_KILL_BUDGET": f"{BUDGET:.0f}s", "NF_DOWN_AFTER": f"{DOWN:.0f}s",
                 "NF_STOP_GRACE": "2s", "SIMULATION_MODE": "true", "MAX_TENANT_GPUS": "16"}
        lab = folder / "lab"
        made = Process(folder / "made", ["cluster", "init", "--dir", str(lab), "--members", f"node-1=127.0.0.1:{self.peer}"])
        assert made.wait(20) == 0, made.output
        self.member = Serve(folder / "member", {
            "NF_PEER_LISTEN": f"127.0.0.1:{self.peer}", "NF_NODE_NAME": "node-1",
            "NF_MEMBERS": f"node-1=127.0.0.1:{self.peer}", "NF_TLS_DIR": lab / "node-1/tls", **times})
        self.member.wait_ready()
        joined = Process(folder / "joined", ["cluster", "join", "--dir", str(lab), f"w1=127.0.0.1:{self.own + 1}"],
                         {"NF_ADDR": self.member.urls[0]})
        assert joined.wait(20) == 0, joined.output
        self.settings = {
            "NF_ROLE": "worker", "NF_JOIN": self.member.urls[0], "NF_NODE_NAME": "w1", "SCHEDULER_PORT": self.own,
            "NF_TLS_DIR": lab / "w1/tls", "NF_DATA_DIR": folder / "worker/data", "NF_PORT_RANGE": "17500-17599",
            "MODEL_STORE_URL": f"file://{self.member.store}", **times}
        self.publish()
        self.worker = None
        self.start()

    def publish(self):
        files = self.folder / "model"
        files.mkdir()
        (files / "server.py").write_text(SERVER)
        runtime = self.folder / "runtime.json"
        runtime.write_text(json.dumps({"argv": ["{python}", "{model}", "{host}", "{port}"],
                                       "env": {"REQUESTS": str(self.requests)}}))
        self.member.nf("model", "publish", str(files), "--model", "m", "--version", "v1", "--runtime", str(runtime))

    def start(self):
        ready = self.folder / "ready.json"
        ready.unlink(missing_ok=True)
        self.worker = Process(self.folder / "worker", ["serve", "--ready-file", str(ready)], self.settings, "worker")
        eventually("the worker works", ready.exists)

    def schedule(self, request_id, **more):
        body = {"tenant_id": "t1", "model_id": "m", "model_version": "v1", "resources": {"gpu": 1},
                "request_id": request_id, **more}
        answer = self.member.call("POST", "/schedule", body)
        assert answer.status_code in (201, 202), answer.text

    def replicas(self, request_id):
        """Address by number, once all of them are ready."""
        def look():
            replicas = self.member.job(request_id)["replicas"]
            assert all(r["status"] == "Ready" for r in replicas), replicas
            return replicas
        return eventually(f"{request_id} is ready", look, 60)

    def pids(self):
        return processes(f"{self.folder}/worker/data/nodes/w1/replicas/")

    def guards(self):
        return processes(f"guard --dir {self.folder}/worker/data")

    def node(self, name):
        return next(node for node in self.member.get("/nodes")["items"] if node["node_id"] == name)


@contextmanager
def lab(folder):
    lab = Lab(folder)
    try:
        yield lab
    finally:
        # Thawed, so that it can end; its replicas outlive it by design.
        lab.worker.child.send_signal(signal.SIGCONT)
        lab.worker.child.kill()
        lab.worker.child.wait()
        lab.member.child.kill()
        lab.member.child.wait()
        for pid in processes(f"{folder}/"):
            os.kill(pid, signal.SIGKILL)


def address(replica):
    return replica["placement"]["address"]


def test_eight_replicas_are_adopted_after_a_stop_and_after_a_kill(tmp_path):
    with lab(tmp_path) as group:
        group.schedule("seven", replicas=7, constraints={"node": "w1"})
        group.schedule("one", constraints={"node": "w1", "exclusive": True})
        replicas = group.replicas("seven") + group.replicas("one")
        pids, guards = group.pids(), group.guards()
        assert len(pids) == 8 and len(guards) == 1, (pids, guards)
        askers = [Asker(address(replica)) for replica in replicas]
        for how in (signal.SIGINT, signal.SIGKILL):
            seen = [asker.answers for asker in askers]
            group.worker.child.send_signal(how)
            group.worker.child.wait(20)
            eventually("they answer without an agent",
                       lambda: all(a.answers > s + 10 for a, s in zip(askers, seen)))
            group.start()
            eventually("the worker is back", lambda: group.node("w1")["state"] == "Ready")
            group.replicas("seven")
            group.replicas("one")
            assert group.pids() == pids, "the same processes"
            assert group.guards() == guards, "and the same guard"
        failures = [failure for asker in askers for failure in asker.end()]
        assert failures == [], f"{len(failures)} failed: {failures[:3]}"
        assert {r["generation"] for r in group.replicas("seven") + group.replicas("one")} == {1}
        for request_id in ("seven", "one"):
            group.member.nf("stop", request_id, "--yes")
            group.member.wait_state(request_id, "Cancelled")
        eventually("none is left", lambda: group.pids() == [], 10)


def test_a_frozen_agent_s_exclusive_replica_ends_before_it_runs_elsewhere(tmp_path):
    with lab(tmp_path) as group:
        # The member's node could run it, too, but not at first.
        group.member.nf("node", "cordon", "node-1", "--reason", "test")
        group.schedule("default")
        group.schedule("only", constraints={"exclusive": True})
        default, only = group.replicas("default")[0], group.replicas("only")[0]
        group.member.nf("node", "uncordon", "node-1")
        pids = group.pids()
        serves, exclusive = Asker(address(default)), Asker(address(only))
        eventually("both answer", lambda: serves.answers > 5 and exclusive.answers > 5)
        guard = group.guards()
        assert len(guard) == 1

        group.worker.child.send_signal(signal.SIGSTOP)
        frozen = time.monotonic()
        eventually("the guard ended one of them", lambda: sum(alive(pid) for pid in pids) == 1, LEASE + 2)
        dead = time.monotonic()
        gone = next(str(pid) for pid in pids if not alive(pid))
        # The last beat that was answered may be a little older than the freeze.
        assert LEASE - BUDGET - 2.5 < dead - frozen < LEASE - BUDGET + 1, dead - frozen
        assert group.node("w1")["state"] != "Down", "before the group gives its node up"
        assert serves.failures == [], "the default kind goes on serving"
        assert exclusive.last < dead

        new = eventually("it runs elsewhere", lambda: [
            r for r in group.member.job("only")["replicas"] if r["generation"] == 2 and r["status"] == "Ready"], 60)[0]
        second = Asker(address(new))
        eventually("it answers", lambda: second.answers > 5)
        answers = serves.answers
        group.worker.child.send_signal(signal.SIGCONT)
        eventually("the worker is back", lambda: group.node("w1")["state"] == "Ready", 30)
        seen = second.answers
        eventually("the new one goes on", lambda: second.answers > seen + 20)
        assert serves.answers > answers
        eventually("what was replaced is gone", lambda: group.pids() == [], 30)
        for asker in (serves, exclusive, second):
            asker.end()
        assert second.failures == []

        # Each replica's own word: the first never answered after the second had begun.
        log = [line.split() for line in group.requests.read_text().splitlines()]
        times = {pid: [float(t) for p, t in log if p == pid] for pid in {p for p, _ in log}}
        later = [t for pid, all_ in times.items() if int(pid) not in pids for t in all_]
        assert later and times[gone][-1] < min(later), (times[gone][-1], min(later))


def test_a_guard_that_is_killed_is_replaced(tmp_path):
    with lab(tmp_path) as group:
        group.schedule("only", constraints={"node": "w1", "exclusive": True})
        group.replicas("only")
        pids, old = group.pids(), group.guards()
        os.kill(old[0], signal.SIGKILL)
        new = eventually("another guard", lambda: [pid for pid in group.guards() if pid not in old])
        assert len(new) == 1 and group.pids() == pids
        group.member.nf("stop", "only", "--yes")
        group.member.wait_state("only", "Cancelled")
        group.worker.stop()
        eventually("nothing to guard, no agent: no guard", lambda: group.guards() == [], 20)
