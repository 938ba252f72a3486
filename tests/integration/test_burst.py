"""A burst of a thousand calls for a model that sleeps, to one member: as many as may wait are
held and answered once a replica is there, every other one is told at once to come again, and
nothing else happens. The replica does not come up before the test lets it, so the numbers are exact.
"""

import asyncio
import json
import re
import resource
from collections import Counter
from contextlib import contextmanager

from nf import Dev, eventually

CALLS = 1000
HELD = 256  # gateway::Options::default
# Opens its port once the gate is there.
SERVER = """
import http.server, os, sys, time
host, port, gate = sys.argv[1:]
while not os.path.exists(gate):
    time.sleep(0.05)
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def answer(self):
        self.rfile.read(int(self.headers.get("content-length") or 0))
        self.send_response(200)
        self.send_header("content-length", "2")
        self.end_headers()
        self.wfile.write(b"ok")
    do_GET = do_POST = answer
    def log_message(self, *_): pass
class Server(http.server.ThreadingHTTPServer):
    request_queue_size = 128
Server((host, int(port)), Handler).serve_forever()
"""
SCALING = {"min": 0, "max": 1, "concurrency": 16, "idle": "1s"}
JOB = {"tenant_id": "t1", "model_id": "m", "model_version": "v1", "resources": {"gpu": 0.1}, "scaling": SCALING}


@contextmanager
def few_files():
    """As a login shell hands them out: 1,024 open files, and more for whoever asks."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 2 * CALLS)), hard))


async def call(host, port, told):
    """One call on a connection of its own: its status, and whether it says when to come again."""
    body = b'{"model":"m","prompt":"x"}'
    head = f"POST /v1/completions HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\n"
    reader, writer = await asyncio.open_connection(host, port)
    writer.write(f"{head}content-length: {len(body)}\r\nconnection: close\r\n\r\n".encode() + body)
    answer = await reader.read()
    writer.close()
    head = answer.split(b"\r\n\r\n", 1)[0].decode().lower()
    status = int(head.split()[1]) if head else 0
    told[status, "retry-after:" in head] += 1


async def burst(group, gate):
    """All calls at once; the gate opens when nobody is left but those who are held."""
    host, port = re.fullmatch(r"http://(.+):(\d+)", group.url()).groups()
    told = Counter()
    calls = [asyncio.create_task(call(host, int(port), told)) for _ in range(CALLS)]

    async def refused():
        while sum(told.values()) < CALLS - HELD:
            await asyncio.sleep(0.05)

    await asyncio.wait_for(refused(), 50)
    early, waiting = Counter(told), await asyncio.to_thread(gauge, group, "nf_gateway_waiting_requests")
    gate.touch()
    await asyncio.wait_for(asyncio.gather(*calls), 90)
    return early, waiting, told


def gauge(group, name):
    text = group.call("GET", "/metrics").text
    return float(re.search(rf"^{name} (\S+)$", text, re.M).group(1))


def test_of_a_thousand_calls_at_zero_replicas_as_many_are_held_as_may_and_the_rest_told_to_come_again(tmp_path):
    gate = tmp_path / "gate"
    gate.touch()
    with few_files():
        settings = ["--set", "scale_every=500ms", "--set", "scale_settle=6s", "--set", "stop_grace=2s"]
        group = Dev(tmp_path / "group", args=settings)
    with group:
        files = group.folder / "model"
        files.mkdir()
        (files / "server.py").write_text(SERVER)
        runtime = group.folder / "runtime.json"
        argv = ["{python}", "{file:server.py}", "{host}", "{port}", str(gate)]
        runtime.write_text(json.dumps({"argv": argv, "ready": {"path": "/health", "timeout_s": 120}}))
        group.nf("model", "publish", str(files), "--model", "m", "--version", "v1", "--runtime", str(runtime))
        assert group.call("POST", "/schedule", JOB).status_code in (201, 202)
        state = lambda: group.get("/services?tenant_id=t1")["items"][0]["state"]  # noqa: E731
        eventually("it sleeps", lambda: state() == "ScaledToZero", 90)
        gate.unlink()

        try:
            early, waiting, told = asyncio.run(burst(group, gate))
            assert early == {(429, True): CALLS - HELD}, f"before any replica was there: {early}"
            assert waiting == HELD
            assert told == {(429, True): CALLS - HELD, (200, False): HELD}, told
            eventually("nobody waits any more", lambda: gauge(group, "nf_gateway_waiting_requests") == 0)
        finally:
            # Replicas outlive their agents.
            gate.touch()
            for job in group.get("/schedule")["items"]:
                group.call("DELETE", f"/schedule/{job['request_id']}")
            eventually("no replica is left", lambda: not group.get("/schedule")["items"], 60)
