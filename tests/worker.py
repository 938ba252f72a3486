"""A member, a worker beside it whose agent can end and begin again, and real programs that
say which process they are. It does not know what a test checks.
"""

import json
import os
import signal
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import requests
from nf import NF, Process, Serve, eventually, free_port, node_keys

# /health; /stream/N tells its pid and counts for N seconds; /slow/N answers after N seconds;
# any other request is answered with the pid, and noted.
SERVER = """
import http.server, os, sys, time
class H(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.rfile.read(int(self.headers.get("content-length") or 0))
        self.send_response(200)
        _, kind, *more = self.path.split("/")
        if kind == "stream":
            self.end_headers()
            for n in range(2 * int(more[0])):
                self.wfile.write(f"{os.getpid()} {n}\\n".encode())
                time.sleep(0.5)
            self.wfile.write(b"end\\n")
            return
        if kind == "slow":
            time.sleep(int(more[0]))
        body = str(os.getpid()).encode()
        if kind != "health" and "REQUESTS" in os.environ:
            with open(os.environ["REQUESTS"], "a") as log:
                log.write(f"{os.getpid()} {time.time():.3f}\\n")
        self.send_header("content-length", str(len(body))); self.end_headers()
        self.wfile.write(body)
    do_POST = do_GET
    def log_message(self, *a): pass
class Server(http.server.ThreadingHTTPServer):
    request_queue_size = 256
Server((sys.argv[1], int(sys.argv[2])), H).serve_forever()
"""
LEASE, BUDGET, DOWN = 31.2, 1.0, 38.0  # seconds: the shortest that nf allows
SHORT = {"NF_LEASE": f"{int(LEASE * 1000)}ms", "NF_KILL_BUDGET": f"{BUDGET:.0f}s", "NF_DOWN_AFTER": f"{DOWN:.0f}s"}


def publish(group, folder, model="m", **runtime):
    """The program above as version v1 of a model."""
    files = folder / f"model-{model}"
    files.mkdir()
    (files / "server.py").write_text(SERVER)
    file = folder / f"runtime-{model}.json"
    file.write_text(json.dumps({"argv": ["{python}", "{model}", "{host}", "{port}"], **runtime}))
    group.nf("model", "publish", str(files), "--model", model, "--version", "v1", "--runtime", str(file))


def alive(pid):
    """A zombie is gone: who reaps it is up to its parent, which these tests freeze and kill."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def session(pid):
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return None


def end_all(folder):
    """Replicas outlive their agents; those below a test's folder must not outlive the test."""
    for pid in processes(f"{folder}/", "/replicas/"):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def processes(*texts):
    """Who has these texts in the command line, by the kernel's word."""
    found = []
    for line in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = line.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if all(text in words for text in texts) and int(line.parent.name) != os.getpid() and alive(int(line.parent.name)):
            found.append(int(line.parent.name))
    return sorted(found)


def address(replica):
    return replica["placement"]["address"]


class Asker(threading.Thread):
    """Asks one replica without pause, as a client that follows no watch would. Whoever has its
    address after it does not count as it."""

    def __init__(self, address):
        super().__init__(daemon=True)
        self.first = None
        self.url, self.answers, self.failures, self.pids = f"http://{address}/infer", 0, [], set()
        self.over = threading.Event()
        self.last = time.monotonic()
        self.start()

    def run(self):
        while not self.over.wait(0.02):
            try:
                answer = requests.get(self.url, timeout=5)
                assert answer.status_code == 200, answer.text
                self.pids.add(answer.text)
                self.first = self.first or answer.text
                if answer.text == self.first:
                    self.answers, self.last = self.answers + 1, time.monotonic()
            except (requests.RequestException, AssertionError) as error:
                self.failures.append(f"{time.time():.3f} {error!r}")

    def end(self):
        self.over.set()
        self.join(20)
        return self.failures


class Stream(threading.Thread):
    """One answer that takes so many seconds; `wrong` says what it lacks, once it is over."""

    def __init__(self, address, seconds):
        super().__init__(daemon=True)
        self.url, self.seconds = f"http://{address}/stream/{seconds}", seconds
        self.lines, self.error, self.took = [], None, None
        self.start()

    def run(self):
        began = time.monotonic()
        try:
            with requests.get(self.url, stream=True, timeout=30) as answer:
                for line in answer.iter_lines(chunk_size=1):
                    self.lines.append(line.decode())
        except requests.RequestException as error:
            self.error = repr(error)
        self.took = time.monotonic() - began

    def wrong(self):
        pids = {line.split()[0] for line in self.lines[:-1]}
        counted = [line.split()[-1] for line in self.lines[:-1]] == [str(n) for n in range(2 * self.seconds)]
        if self.error or not counted or self.lines[-1] != "end" or len(pids) != 1:
            return f"{self.url}: {len(self.lines)} lines in {self.took} s, the last {self.lines[-1:]}, {self.error}"
        return None


class Lab:
    """A member, and a worker that can be started again on the same data."""

    def __init__(self, folder, times=SHORT, peer=None, **runtime):
        """`peer` is (what the member listens on, what others are told): with a wire between, they differ."""
        self.folder, self.own = folder, free_port()
        listens, told = peer or (free_port(),) * 2
        self.requests = folder / "requests"
        times = {**times, "NF_STOP_GRACE": "2s", "SIMULATION_MODE": "true", "MAX_TENANT_GPUS": "64"}
        lab = folder / "lab"
        made = Process(folder / "made", ["cluster", "init", "--open", "--dir", str(lab), "--members", f"node-1=127.0.0.1:{told}"])
        assert made.wait(20) == 0, made.output
        self.member = Serve(folder / "member", {
            "NF_PEER_LISTEN": f"127.0.0.1:{listens}", "NF_NODE_NAME": "node-1", "NF_MEMBERS": f"node-1=127.0.0.1:{told}",
            "NF_TLS_DIR": lab / "node-1/tls", **times})
        self.member.wait_ready()
        self.settings = {
            "NF_ROLE": "worker", "NF_JOIN": self.member.urls[0], "NF_NODE_NAME": "w1", "SCHEDULER_PORT": self.own,
            "NF_TLS_DIR": node_keys(lab, "w1"), "NF_DATA_DIR": folder / "worker/data", "NF_PORT_RANGE": "17500-17599",
            "MODEL_STORE_URL": f"file://{self.member.store}", **times}
        publish(self.member, folder, env={"REQUESTS": str(self.requests)}, **runtime)
        self.worker = None
        self.start()

    def start(self, program=NF):
        ready = self.folder / "ready.json"
        ready.unlink(missing_ok=True)
        self.worker = Process(self.folder / "worker", ["serve", "--ready-file", str(ready)], self.settings, "worker", program)
        eventually("the worker works", ready.exists)

    def end(self, how):
        self.worker.child.send_signal(how)
        self.worker.child.wait(20)

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

    def processes(self):
        return processes(f"{self.folder}/worker/data/nodes/w1/replicas/")

    def pids(self):
        """Each replica's first process; a shell that keeps its exit status has the program below it."""
        return [pid for pid in self.processes() if session(pid) == pid]

    def stop(self, *request_ids):
        """They end as they are told to, and leave no process."""
        for request_id in request_ids:
            self.member.nf("stop", request_id, "--yes")
            self.member.wait_state(request_id, "Cancelled")
        eventually("none is left", lambda: self.processes() == [], 10)

    def guards(self):
        return processes(f"guard --dir {self.folder}/worker/data")

    def node(self, name):
        return {node["node_id"]: node for node in self.member.get("/nodes")["items"]}[name]


@contextmanager
def lab(folder, **more):
    lab = Lab(folder, **more)
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
