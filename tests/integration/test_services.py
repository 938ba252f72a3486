"""Services on three members: the gateway takes requests on each of them, the number of
replicas follows the load, no request is lost when the leader is killed meanwhile, and
a sleeping service wakes. Going down after load takes minutes: tests/e2e waits for it.
"""

import json
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests
from nf import Dev, eventually

SCALING = {"min": 0, "max": 4, "concurrency": 2, "max_wait": "200ms", "cold_start": "1s", "idle": "3s"}
JOB = {"tenant_id": "t1", "model_id": "m1", "model_version": "v1", "resources": {"gpu": 0.1}, "scaling": SCALING}
BODY = {"model": "m1", "messages": [{"role": "user", "content": "hello"}]}


@pytest.fixture(scope="module")
def group(tmp_path_factory):
    with Dev(tmp_path_factory.mktemp("services"), args=["--set", "scale_every=500ms", "--set", "scale_settle=6s"]) as group:
        yield group


def service(group, member=0):
    items = group.get("/services?tenant_id=t1", member)["items"]
    return next(item for item in items if item["model_id"] == "m1")


def chat(url, session, timeout=90):
    return session.post(f"{url}/v1/chat/completions", json=BODY, headers={"x-nf-tenant": "t1"}, timeout=timeout)


class Load:
    """Clients that call one member each until told to stop; a member that is gone costs them a retry elsewhere."""

    def __init__(self, urls, clients):
        self.urls, self.end, self.codes = urls, threading.Event(), Counter()
        self.gone = None
        self.threads = [threading.Thread(target=self.run, args=(i,)) for i in range(clients)]
        for thread in self.threads:
            thread.start()

    def run(self, i):
        session = requests.Session()
        while not self.end.is_set():
            url = self.urls[i % len(self.urls)]
            try:
                self.codes[chat(url, session).status_code] += 1
            except requests.ConnectionError:
                # The member itself was killed: its callers go to another, as any client does.
                assert url == self.gone, f"{url} is alive and broke a connection"
                self.codes["moved"] += 1
                i += 1

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.end.set()
        for thread in self.threads:
            thread.join()


def test_it_grows_with_its_load_and_loses_nothing_with_the_leader(group):
    # A simulated replica lives in its member's process; a real one outlives it (tests/e2e).
    leader = group.leader()
    group.nf("node", "cordon", group.members()[leader]["name"], "--reason", "its end is near")
    answer = group.call("POST", "/schedule", JOB)
    assert answer.status_code == 201, answer.text
    job = answer.json()["request_id"]
    eventually("the first is ready", lambda: service(group)["state"] == "Healthy")
    assert group.job(job)["scaling"]["max"] == 4

    with Load(group.urls, 12) as load:
        eventually("the load has made it grow", lambda: service(group)["ready"] >= 3, 60)
        load.gone = group.url(leader)
        group.kill(leader)
        before = load.codes[200]
        eventually("requests go on without that leader", lambda: load.codes[200] > before + 200, 30)
    assert set(load.codes) <= {200, "moved"}, load.codes
    group.restart(leader)
    group.nf("node", "uncordon", group.members()[leader]["name"])

    scaled = [(e["from"], e["to"]) for e in group.get("/events?per_page=1000")["items"] if e["kind"] == "scaled"]
    assert scaled and scaled[0][0] == "1", scaled
    group.call("DELETE", f"/schedule/{job}")


def test_a_burst_at_zero_is_held_or_told_to_come_again(group):
    job = {**JOB, "model_id": "m2", "scaling": {**SCALING, "idle": "1s"}}
    group.call("POST", "/schedule", job)
    item = lambda: next(i for i in group.get("/services")["items"] if i["model_id"] == "m2")  # noqa: E731
    eventually("it sleeps", lambda: item()["state"] == "ScaledToZero", 60)
    url, body = group.url(), {"model": "m2", "prompt": "x"}
    with ThreadPoolExecutor(400) as pool:
        calls = [pool.submit(requests.post, f"{url}/v1/completions", json=body, timeout=90) for _ in range(400)]
        answers = [call.result() for call in calls]
    codes = Counter(answer.status_code for answer in answers)
    assert set(codes) <= {200, 429} and codes[200] >= 200, codes
    assert all(a.headers.get("retry-after") for a in answers if a.status_code == 429)
    events = [e for e in group.get("/events?per_page=1000")["items"] if e["kind"] == "scaled"]
    assert any((e["from"], e["why"]) == ("0", "WakeFromZero") for e in events), events


def test_a_promise_is_counted_on_every_member_and_told_by_any(group):
    """Twelve requests, four on each member, of which three are promised what nobody can keep."""
    job = {**JOB, "model_id": "m4", "scaling": {**SCALING, "min": 1}}
    group.call("POST", "/schedule", job)
    eventually("it serves", lambda: group.get("/slo/t1/m4")["ready"] == 1)
    assert group.get("/slo/t1/m4")["target"] == {"latency_ms": 800, "stated": False, "objective": 0.95, "error_rate": None}
    assert [w["requests"] for w in group.get("/slo/t1/m4")["windows"]] == [0] * 5
    for i in range(9):
        answer = requests.post(f"{group.url(i % 3)}/v1/completions", json={"model": "m4", "prompt": "x"}, timeout=30)
        assert answer.status_code == 200, answer.text
    # A stricter job of the same service: from now on a millisecond is promised, and the replica takes longer.
    strict = {**job, "constraints": {"latency_ms": 1}, "scaling": {**SCALING, "min": 1, "max": 1}}
    second = group.call("POST", "/schedule", strict).json()["request_id"]
    eventually("the promise is known", lambda: group.get("/slo/t1/m4")["target"]["latency_ms"] == 1)
    eventually("and its replica serves", lambda: group.job(second)["ready"] == 1)
    slow = requests.post(f"{group.url()}/v1/completions", json={"model": "m4", "prompt": "y" * 200_000}, timeout=30)
    assert slow.status_code == 200

    for member in range(3):
        # A member tells what it gathered within the last second.
        counted = lambda: group.get("/slo/t1/m4", member)["windows"][0]["requests"] == 10
        eventually(f"member {member} has asked again", counted)
        slo = group.get("/slo/t1/m4", member)
        assert slo["silent"] == [] and slo["simulation"] is True, slo
        assert [w["requests"] for w in slo["windows"]] == [10] * 5, slo
        assert all(w["good"] + w["slow"] == 10 and w["failed"] == 0 for w in slo["windows"]), slo
    eventually("the leader has looked", lambda: group.get("/slo/t1/m4")["autoscaler"])
    table = group.nf("slo", "--tenant", "t1")
    assert "m4" in table and "1 ms" in table, table
    assert "burn rate" in group.nf("slo", "t1/m4").lower()

    metrics = group.call("GET", "/metrics").text
    assert 'nf_slo_attainment_ratio{model="m4",tenant="t1"}' in metrics
    assert 'nf_slo_requests_total{model="m4",result="good",tenant="t1"}' in metrics
    missing = group.call("GET", "/slo/t1/nobody-has-it")
    assert (missing.status_code, missing.json()["field"]) == (404, "model_id"), missing.text
    assert group.call("GET", "/slo/T%20/m4").status_code == 400


def test_load_that_comes_past_the_gateway_counts(group):
    """The replica's own metrics tell of it; a gateway sees none of these requests."""
    job = {**JOB, "model_id": "m5", "scaling": {**SCALING, "min": 1}}
    request = group.call("POST", "/schedule", job).json()["request_id"]
    eventually("it serves", lambda: group.job(request)["ready"] == 1)
    place = group.job(request)["replicas"][0]["placement"]
    end = threading.Event()

    def call():
        session = requests.Session()
        while not end.is_set():
            assert session.post(f"http://{place['address']}/v1/completions", json={"prompt": "x"}, timeout=30).ok

    with ThreadPoolExecutor(12) as pool:
        calls = [pool.submit(call) for _ in range(12)]
        try:
            eventually("it grows", lambda: group.job(request)["ready"] >= 3, 60)
        finally:
            end.set()
        assert [c.result() for c in calls] == [None] * 12
    slo = group.get("/slo/t1/m5")
    assert [w["requests"] for w in slo["windows"]] == [0] * 5, slo
    group.call("DELETE", f"/schedule/{request}")


def test_what_the_autoscaler_says_is_told_by_the_leader_alone_and_can_be_played_again(group, tmp_path):
    job = {**JOB, "model_id": "m6", "scaling": {**SCALING, "min": 1}}
    request = group.call("POST", "/schedule", job).json()["request_id"]

    def said():
        items = group.nf_json("autoscale", "status", "--tenant", "t1")["items"]
        return next((item["autoscaler"] for item in items if item["model_id"] == "m6"), None)

    whole = lambda: (advice := said()) and advice["signal_age_ms"] is not None and not advice["gap"] and advice  # noqa: E731
    advice = eventually("it is told, with the age of what it was judged by, once its replica has spoken", whole)
    assert advice["current"] == 1 and advice["signal_age_ms"] < 10_000, advice
    assert "SIGNAL AGE" in group.nf("autoscale", "status")

    def series(member):
        lines = group.call("GET", "/metrics", member=member).text.splitlines()
        return [line for line in lines if line.startswith("nf_autoscale_") and 'model="m6"' in line]

    leader = group.leader()
    eventually("the leader tells it", lambda: series(leader))
    assert not any(series(member) for member in range(3) if member != leader)

    journal = group.data / group.members()[leader]["name"] / "data/autoscale/autoscale.jsonl"
    text = journal.read_text()
    text = text[: text.rindex("\n") + 1]  # it is being written to
    copy = tmp_path / "journal.jsonl"
    copy.write_text(text)
    assert "the same decisions" in group.nf("autoscale", "replay", str(copy))
    line = next(line for line in text.splitlines() if '"look"' in line and '"m6"' in line)
    other = json.loads(line)
    other["look"]["decision"]["desired"] += 1
    copy.write_text(text.replace(line, json.dumps(other), 1))
    assert "not the same" not in group.nf("autoscale", "replay", str(copy), code=1)
    copy.write_text("{}\n")
    group.nf("autoscale", "replay", str(copy), code=2)

    group.call("DELETE", f"/schedule/{request}")
    eventually("it goes with its service", lambda: not series(leader))


def test_a_number_can_be_asked_for_within_bounds(group):
    answer = group.call("POST", "/schedule", {**JOB, "model_id": "m3", "scaling": {**SCALING, "min": 1}}).json()
    job = answer["request_id"]
    done = group.call("POST", f"/schedule/{job}/scale", {"replicas": 3})
    assert done.status_code == 200, done.text
    eventually("three serve", lambda: group.job(job)["ready"] == 3)
    for replicas, field in [(0, "replicas"), (5, "replicas"), (-1, "replicas")]:
        refused = group.call("POST", f"/schedule/{job}/scale", {"replicas": replicas})
        assert (refused.status_code, refused.json()["field"]) == (400, field), refused.text
    fixed = group.call("POST", "/schedule", {k: v for k, v in JOB.items() if k != "scaling"}).json()["request_id"]
    refused = group.call("POST", f"/schedule/{fixed}/scale", {"replicas": 2})
    assert refused.status_code == 409 and "fixed" in refused.json()["detail"], refused.text
    assert group.nf("scale", job, "2").startswith(f"job {job} (m3 of t1) goes to 2")


@pytest.mark.parametrize("scaling,field", [
    ({"min": 2, "max": 1}, "scaling.min"),
    ({"max": 0}, "scaling.max"),
    ({}, "scaling.max"),
    ({"max": 2, "concurrency": 0}, "scaling.concurrency"),
    ({"max": 2, "idle": "400d"}, "scaling.idle"),
    ({"max": 2, "step_down": 0}, "scaling.step_down"),
    ({"max": 2, "surge": 1}, "scaling.surge"),
])
def test_terms_that_no_service_can_have(group, scaling, field):
    answer = group.call("POST", "/schedule", {**JOB, "scaling": scaling})
    assert (answer.status_code, answer.json()["field"]) == (400, field), answer.text


def test_callers_are_told_what_is_wrong(group):
    for path, body, code in [
        ("/v1/chat/completions", {"model": "nobody-has-it"}, 404),
        ("/v1/chat/completions", {"messages": []}, 400),
        ("/v1/chat/completions", {"model": "../x"}, 400),
        ("/serve/t1/nobody-has-it/x", {}, 404),
        ("/serve/T%20/m/x", {}, 400),
    ]:
        answer = group.call("POST", path, body)
        assert answer.status_code == code, (path, body, answer.text)
        assert answer.json()["error"]["code"] and answer.json()["error"]["message"]
    assert {m["id"] for m in group.get("/v1/models")["data"]} >= {"m3"}
