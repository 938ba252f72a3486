"""One call is one trace, whoever takes it: from the caller through the follower that forwards it, the
leader that commits it and the agent that starts its replica, to the program itself; and from the gateway
to the replica. A collector of the test's own takes the spans. Without one nothing is made of it all, and
a caller's trace passes as it came.
"""

import json
import secrets

import pytest
import requests
from nf import Dev, Process, Serve, eventually, free_port, node_keys
from otlp import collector

# Answers with the headers that it was sent, and with the trace that it was started in.
SERVER = """
import http.server, json, os, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def answer(self):
        self.rfile.read(int(self.headers.get("content-length") or 0))
        headers = {name.lower(): value for name, value in self.headers.items()}
        body = json.dumps({"headers": headers, "started": os.environ.get("TRACEPARENT")}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    do_GET = do_POST = answer
    def log_message(self, *_): pass
http.server.ThreadingHTTPServer((sys.argv[1], int(sys.argv[2])), Handler).serve_forever()
"""
CANARY = "canary-token-that-no-span-may-tell"
JOB = {"tenant_id": "t1", "model_id": "m1", "model_version": "v1", "resources": {"gpu": 0.1}}
# The log says what is below, too, so that one can see whose trace its lines are.
WATCHED = {"OTEL_BSP_SCHEDULE_DELAY": "200", "NF_LOG": "warn,neural_fabric=debug", "OTEL_RESOURCE_ATTRIBUTES": "deployment=test"}


class Call:
    """A caller's trace, as it is written in a header (W3C Trace Context)."""

    def __init__(self, watched=True):
        self.trace, self.span = secrets.token_hex(16), secrets.token_hex(8)
        self.headers = {"traceparent": f"00-{self.trace}-{self.span}-{'01' if watched else '00'}",
                        "authorization": f"Bearer {CANARY}"}


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    with collector() as spans:
        settings = {**WATCHED, "OTEL_EXPORTER_OTLP_ENDPOINT": spans.url}
        with Dev(tmp_path_factory.mktemp("traces"), settings, ["--set", "stop_grace=2s"]) as group:
            publish(group)
            yield group, spans
            for job in group.get("/schedule")["items"]:
                group.call("DELETE", f"/schedule/{job['request_id']}")
            eventually("no replica is left", lambda: not group.get("/schedule")["items"], 60)


def publish(group):
    files = group.folder / "model"
    files.mkdir()
    (files / "server.py").write_text(SERVER)
    runtime = group.folder / "runtime.json"
    argv = ["{python}", "{file:server.py}", "{host}", "{port}"]
    runtime.write_text(json.dumps({"argv": argv, "ready": {"path": "/health", "timeout_s": 30}}))
    group.nf("model", "publish", str(files), "--model", "echo", "--version", "v1", "--runtime", str(runtime))


def below(spans, *names):
    """Each of these spans is a child of the one before."""
    for parent, child in zip(names, names[1:]):
        assert spans[child].parent == spans[parent].id, f"{child} is not below {parent}: {spans[child]}"


def test_a_schedule_call_is_one_trace_from_its_caller_to_the_agent(watched):
    group, collected = watched
    leader = group.leader()
    taker, runner = [n for n in range(3) if n != leader]
    names = [member["name"] for member in group.members()]
    call = Call()
    # Taken by one follower, decided by the leader, started by the other follower: three processes.
    body = {**JOB, "constraints": {"node": names[runner]}}
    answer = group.call("POST", "/schedule", body, member=taker, headers=call.headers)
    assert answer.status_code == 201, answer.text
    request = answer.json()["request_id"]
    group.wait_state(request, "Running")
    wanted = {"POST /schedule", "forward", "forwarded", "commit", "start replica"}
    eventually("all spans have come", lambda: wanted <= set(collected.of(call.trace)), 20)
    spans = collected.of(call.trace)
    assert spans["POST /schedule"].parent == call.span, "it goes on with the caller's trace"
    below(spans, "POST /schedule", "forward", "forwarded", "commit", "start replica")
    told = {name: (spans[name].kind, spans[name].process) for name in wanted}
    assert told == {
        "POST /schedule": ("server", names[taker]), "forward": ("client", names[taker]),
        "forwarded": ("server", names[leader]), "commit": ("internal", names[leader]),
        "start replica": ("internal", names[runner]),
    }
    assert spans["POST /schedule"].attributes["http.response.status_code"] == 201
    assert spans["commit"].attributes["index"] > 0 and spans["start replica"].attributes["request"] == request
    assert all(span.nanos >= 0 for span in spans.values())

    lines = [json.loads(line) for log in group.data.rglob("log.txt") for line in log.read_text().splitlines() if line.startswith("{")]
    mine = [line for line in lines if any(span.get("trace_id") == call.trace for span in line.get("spans", []))]
    assert mine, f"no line of {len(lines)} in the logs says that it is of this trace"


def test_what_a_caller_does_not_watch_is_not_told_and_secrets_never_are(watched):
    group, collected = watched
    unwatched, after = Call(watched=False), Call()
    for call in (unwatched, after):
        assert group.call("GET", "/schedule", headers=call.headers).status_code == 200
        assert group.call("GET", f"/schedule?tenant_id=t1&next_token={CANARY}", headers=call.headers).status_code == 400
    assert group.call("GET", "/health", headers=after.headers).status_code == 200
    eventually("the later one has come", lambda: collected.of(after.trace).get("GET /schedule"), 20)
    assert collected.of(unwatched.trace) == {}
    assert set(collected.of(after.trace)) == {"GET /schedule"}, "what monitors ask every second is not traced"
    assert not [body for body in collected.raw if CANARY.encode() in body]


def test_the_gateway_hands_the_trace_to_the_replica_and_the_program_knows_its_own(watched):
    group, collected = watched
    launch, call = Call(), Call()
    answer = group.call("POST", "/schedule", {**JOB, "model_id": "echo"}, headers=launch.headers)
    assert answer.status_code == 201, answer.text
    group.wait_state(answer.json()["request_id"], "Running")
    url = f"{group.url()}/v1/completions"
    answer = requests.post(url, json={"model": "echo", "prompt": CANARY}, headers=call.headers, timeout=30)
    assert answer.status_code == 200, answer.text
    seen = answer.json()
    eventually("its spans have come", lambda: {"POST /v1/completions", "replica"} <= set(collected.of(call.trace)), 20)
    spans = collected.of(call.trace)
    assert spans["POST /v1/completions"].parent == call.span
    below(spans, "POST /v1/completions", "replica")
    assert seen["headers"]["traceparent"] == f"00-{call.trace}-{spans['replica'].id}-01"
    assert "authorization" not in seen["headers"]
    assert (spans["POST /v1/completions"].attributes["tenant"], spans["POST /v1/completions"].attributes["model"]) == ("t1", "echo")
    start = eventually("the launch's have, too", lambda: collected.of(launch.trace).get("start replica"), 20)
    assert seen["started"] == f"00-{launch.trace}-{start.id}-01"
    assert not [body for body in collected.raw if CANARY.encode() in body]


def test_a_worker_without_a_log_knows_whose_call_its_replica_goes_back_to(tmp_path):
    peer, own = free_port(), free_port()
    lab = tmp_path / "lab"
    made = Process(tmp_path / "made", ["cluster", "init", "--open", "--dir", str(lab), "--members", f"node-1=127.0.0.1:{peer}"])
    assert made.wait(20) == 0, made.output
    with collector() as spans:
        traced = {**WATCHED, "OTEL_EXPORTER_OTLP_ENDPOINT": spans.url, "SIMULATION_MODE": "true"}
        member = {**traced, "NF_PEER_LISTEN": f"127.0.0.1:{peer}", "NF_NODE_NAME": "node-1",
                  "NF_MEMBERS": f"node-1=127.0.0.1:{peer}", "NF_TLS_DIR": lab / "node-1/tls"}
        with Serve(tmp_path / "member", member) as group:
            settings = {**traced, "NF_ROLE": "worker", "NF_JOIN": group.urls[0], "NF_NODE_NAME": "w1", "SCHEDULER_PORT": own,
                        "NF_TLS_DIR": node_keys(lab, "w1"), "NF_DATA_DIR": tmp_path / "worker/data", "GPU_NODES": "w1:H100-80G:1",
                        "NF_PORT_RANGE": "17600-17699"}
            with Process(tmp_path / "worker", ["serve"], settings, "worker"):
                eventually("the group knows the worker", lambda: "w1" in {
                    node["node_id"] for node in group.get("/nodes")["items"] if node["state"] == "Ready"}, 30)
                call = Call()
                answer = group.call("POST", "/schedule", {**JOB, "constraints": {"node": "w1"}}, headers=call.headers)
                assert answer.status_code == 201, answer.text
                eventually("all spans have come", lambda: {"POST /schedule", "commit", "start replica"} <= set(spans.of(call.trace)), 30)
                assert spans.of(call.trace)["start replica"].process == "w1"
                below(spans.of(call.trace), "POST /schedule", "commit", "start replica")


def test_without_a_collector_a_callers_trace_passes_as_it_came(tmp_path):
    with Serve(tmp_path) as group:
        publish(group)
        call = Call()
        answer = group.call("POST", "/schedule", {**JOB, "model_id": "echo"}, headers=call.headers)
        group.wait_state(answer.json()["request_id"], "Running")
        url = f"{group.url()}/v1/completions"
        seen = requests.post(url, json={"model": "echo", "prompt": "x"}, headers=call.headers, timeout=30).json()
        assert seen["headers"]["traceparent"] == call.headers["traceparent"] and seen["started"] is None
        group.call("DELETE", f"/schedule/{answer.json()['request_id']}")
        eventually("no replica is left", lambda: not group.get("/schedule")["items"], 30)
