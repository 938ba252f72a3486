"""The specification's own walk: register a node, fetch a model, schedule it, see
the run file and the status. Strict (every promised field), as a newcomer does it
(plain HTTP, no token), against `nf dev` and against one bare `nf serve`.
"""

import hashlib
import json
import re

import pytest
import requests
from nf import Dev, Serve, eventually

RUN_FILE = {"job", "model", "ts", "version", "tenant", "node", "devices", "generation", "status", "sim"}
POLICIES = {f"P{n}" for n in range(1, 8)}
BODY = {
    "tenant_id": "t1",
    "model_id": "m1",
    "model_version": "v1",
    "resources": {"gpu": 1, "mem": "4GB"},
    "constraints": {"latency_ms": 200},
}


@pytest.fixture(scope="module", params=[Dev, Serve], ids=["dev", "serve"])
def group(request, tmp_path_factory):
    with request.param(tmp_path_factory.mktemp("nf")) as group:
        yield group


def last(group):
    """The member furthest from the first, so that calls are forwarded where there are several."""
    return len(group.urls) - 1


def test_health_says_simulation_and_names_a_leader(group):
    health = group.get("/health", last(group))
    assert health["status"] == "ok" and health["simulation"] is True
    assert {"uptime", "node_id", "role", "leader", "term", "index", "components"} <= health.keys()
    assert health["role"] in ("leader", "follower") and health["leader"]


def test_register_a_node(group):
    first = group.call("POST", "/node/register", {"node_id": "n1", "gpus": 1})
    assert first.status_code == 201, first.text
    assert first.json()["node_id"] == "n1"
    assert first.json()["registered"] is True and first.json()["simulation"] is True
    again = group.call("POST", "/resources/register", {"node_id": "n1", "gpus": 1}, member=last(group))
    assert again.status_code == 200, f"the same handler under its other name: {again.text}"
    made_up = group.call("POST", "/node/register", {})
    assert made_up.status_code == 201 and made_up.json()["node_id"]

    resources = group.get("/resources", last(group))
    nodes = {node["node_id"]: node for node in resources["nodes"]}
    assert {"n1", made_up.json()["node_id"]} <= nodes.keys()
    assert nodes["n1"]["total"]["gpu"] == 1
    for amount in ("total", "reserved", "free"):
        assert resources[amount]["gpu"] >= 0


def test_fetch_a_model(group, tmp_path):
    source = tmp_path / "model"
    source.mkdir()
    content = b"weights, for all the store knows\n" * 1000
    (source / "model.onnx").write_bytes(content)
    published = group.nf_json("model", "publish", str(source), "--model", "m1", "--version", "v1")
    pulled = group.nf_json("model", "pull", "m1@v1", "--to", str(tmp_path / "pulled"))
    assert {"model_id", "version", "sha256", "path"} <= pulled.keys()
    assert (pulled["model_id"], pulled["version"]) == ("m1", "v1")
    assert re.fullmatch(r"[0-9a-f]{64}", pulled["sha256"]) and pulled["sha256"] == published["sha256"]
    fetched = [f for f in (tmp_path / "pulled").rglob("*") if f.is_file()]
    assert hashlib.sha256(content).hexdigest() in {hashlib.sha256(f.read_bytes()).hexdigest() for f in fetched}


def test_schedule_and_see_the_run_file_and_the_status(group):
    answer = group.call("POST", "/schedule", BODY, member=last(group))
    assert answer.status_code == 201, answer.text
    body = answer.json()
    request_id = body["request_id"]
    assert answer.headers["Location"].endswith(f"/schedule/{request_id}?tenant_id={BODY['tenant_id']}")
    assert body["job_id"] == request_id and body["status"] == "scheduled" and body["simulation"] is True
    assert body["state"] in ("Admitted", "Starting", "Running")
    assert set(body["policies"]) == POLICIES
    assert set(body["policies"].values()) <= {"pass", "block", "na", "simulated", "waived"}
    assert body["policies"]["P2"] == "simulated", "nothing was signed, so nothing may say pass"
    place = body["placement"]
    assert place["node"] and len(place["devices"]) == 1 and place["why"]

    job = group.wait_state(request_id, "Running", member=last(group))
    assert [replica["status"] for replica in job["replicas"]] == ["Ready"]
    assert [step["state"] for step in job["history"]][-1] == "Running"

    file = eventually("the run file says running",
                      lambda: group.run_file(request_id)["status"] == "running" and group.run_file(request_id))
    assert RUN_FILE <= file.keys()
    assert (file["job"], file["model"], file["version"], file["tenant"]) == (request_id, "m1", "v1", "t1")
    assert file["node"] == place["node"] and file["devices"] == place["devices"]
    assert file["generation"] == job["replicas"][0]["generation"] == 1
    assert file["sim"] is True and re.match(r"\d{4}-\d\d-\d\dT", file["ts"])

    address = job["placement"]["address"]
    assert address, "a replica that serves has an address"
    assert requests.get(f"http://{address}/health", timeout=5).status_code == 200
    assert "nf_model_requests_running" in requests.get(f"http://{address}/metrics", timeout=5).text

    stopped = group.call("DELETE", f"/schedule/{request_id}?tenant_id=t1")
    assert stopped.status_code == 200, stopped.text
    group.wait_state(request_id, "Cancelled")
    eventually("the run file says so, too", lambda: group.run_file(request_id)["status"] == "stopped")


def test_a_retry_is_the_same_job(group):
    key = {"Idempotency-Key": "walk-1"}
    first = group.call("POST", "/schedule", BODY, headers=key)
    again = group.call("POST", "/schedule", BODY, member=last(group), headers=key)
    assert (first.status_code, again.status_code) == (201, 201), (first.text, again.text)
    assert again.json()["request_id"] == first.json()["request_id"]
    assert (first.json()["replayed"], again.json()["replayed"]) == (False, True)
    other = group.call("POST", "/schedule", {**BODY, "model_id": "m2"}, headers=key)
    assert (other.status_code, other.json()["reason"]) == (409, "IdempotencyConflict")
    group.call("DELETE", f"/schedule/{first.json()['request_id']}?tenant_id=t1")
    group.wait_state(first.json()["request_id"], "Cancelled")


def test_what_cannot_run_waits_with_every_reason(group):
    answer = group.call("POST", "/schedule", {**BODY, "tenant_id": "greedy", "resources": {"gpu": 512}})
    assert answer.status_code == 202, answer.text
    body = answer.json()
    assert (body["status"], body["state"]) == ("queued", "Pending") and body["position"] == 1
    tokens = {reason["reason"]: reason for reason in body["reasons"]}
    assert {"ExceedsMaxQuota", "NoMatchingDevice"} <= tokens.keys(), "all reasons at once"
    assert all(tokens[t]["permanent"] for t in ("ExceedsMaxQuota", "NoMatchingDevice")), "it can never run, and is told so"
    never = group.call("POST", "/schedule",
                       {**BODY, "tenant_id": "greedy", "resources": {"gpu": 512}, "queue": "never"})
    assert (never.status_code, never.json()["reason"]) == (429, "QuotaExceeded")
    assert "Retry-After" in never.headers
    assert group.call("DELETE", f"/schedule/{body['request_id']}?tenant_id=greedy").status_code == 200


def test_a_plan_commits_nothing_and_can_be_held_to(group):
    before = group.get("/schedule?tenant_id=planner")["items"]
    wish = {**BODY, "tenant_id": "planner"}
    plan = group.call("POST", "/schedule", {**wish, "dry_run": True})
    assert plan.status_code == 200, plan.text
    assert plan.json()["placement"]["node"] and plan.json()["digest"]
    assert group.get("/schedule?tenant_id=planner")["items"] == before == []
    wrong = group.call("POST", "/schedule", {**wish, "check_plan": "0" * 32})
    assert (wrong.status_code, wrong.json()["reason"]) == (409, "PlanChanged")


def test_launch_pins_to_this_node(group):
    answer = group.call("POST", "/node/launch", {**BODY, "tenant_id": "pinned"})
    assert answer.status_code == 201, answer.text
    assert {"launched", "file", "request_id"} <= answer.json().keys() and answer.json()["launched"] is True
    request_id = answer.json()["request_id"]
    job = group.wait_state(request_id, "Running")
    assert job["placement"]["node"] == group.get("/health")["node_id"]
    assert json.loads(open(answer.json()["file"]).read())["job"] == request_id
    group.call("DELETE", f"/schedule/{request_id}?tenant_id=pinned")


def test_promotion_is_dry_unless_said_otherwise(group):
    leader = group.get("/health")["leader"]
    answer = group.call("POST", "/failover/promote", {"member": leader, "tenant_id": "t1"})
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert body["action"] == "promote" and body["dry_run"] is True and "ok" in body
    assert group.get("/health")["leader"] == leader


def test_metrics_and_the_contract_are_served(group):
    scraped = group.call("GET", "/metrics")
    assert scraped.status_code == 200
    metrics = scraped.text
    for family in ("nf_build_info", "nf_sched_requests_total", "nf_raft_is_leader", "nf_jobs", "nf_gpus"):
        assert re.search(rf"^# TYPE {family} ", metrics, re.M), family
    contract = group.get("/openapi.json")
    assert contract["openapi"].startswith("3.")
    for path in ("/schedule", "/resources", "/node/register", "/node/launch", "/failover/promote", "/health"):
        assert path in contract["paths"], path


def test_running_replicas_are_targets_for_prometheus(group):
    answer = group.call("POST", "/schedule", {**BODY, "tenant_id": "scraped"})
    assert answer.status_code == 201, answer.text
    job = group.wait_state(answer.json()["request_id"], "Running")
    targets = group.get("/sd/prometheus?tenant_id=scraped", last(group))
    labels = {"tenant": "scraped", "model": "m1", "version": "v1", "node": job["placement"]["node"],
              "__meta_nf_state": "Ready", "__meta_nf_traffic": "true"}
    assert targets == [{"targets": [job["placement"]["address"]], "labels": labels}]
    deploys = r'^nf_model_deploys_total\{model="m1",tenant="scraped"\} 1$'
    # A scrape is at most a second old.
    eventually("the deploy is counted", lambda: re.search(deploys, group.call("GET", "/metrics").text, re.M))
    assert group.call("DELETE", f"/schedule/{job['request_id']}?tenant_id=scraped").status_code == 200
