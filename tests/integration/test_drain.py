"""A node is emptied without a request lost: replacements first, nothing stopped where
there is no room, and a client that follows the endpoints never meets a stopped replica.
"""

import json
import time

import pytest
from follower import Follower, job, node, nodes
from nf import Serve, eventually


@pytest.fixture(scope="module")
def group(tmp_path_factory):
    with Serve(tmp_path_factory.mktemp("drain"), {"MAX_TENANT_GPUS": "64"}) as group:
        # The member's own node would take everything.
        own = group.get("/nodes")["items"][0]["node_id"]
        assert group.call("POST", f"/node/{own}/cordon", {"reason": "tests"}).status_code == 200
        yield group


def test_a_follower_of_the_endpoints_meets_no_stopped_replica(group):
    nodes(group, a1=2)
    for name in ("f1", "f2"):
        job(group, name, model="followed")
    nodes(group, a2=2)
    before = group.get("/endpoints?model_id=followed")
    assert [(e["node"], e["state"], e["traffic"]) for e in before["items"]] == [("a1", "Ready", True)] * 2
    with Follower(group, "followed") as follower:
        eventually("requests are answered", lambda: follower.served > 50)
        told = group.nf("node", "drain", "a1", "--reason", "new fans", "--yes")
        assert "drains; 2 replica(s)" in told, told
        eventually("drained", lambda: node(group, "a1")["drain"] == "Drained", 30)
        served = follower.served
        eventually("it goes on", lambda: follower.served > served + 50)
    assert not follower.failed, follower.failed[:3]
    states = [{(e["node"], e["state"]) for e in items} for items in follower.sets]
    assert any(("a1", "Draining") in seen for seen in states), states
    assert all(any(e["traffic"] for e in items) for items in follower.sets), "never without a copy that serves"
    there = node(group, "a1")
    assert (there["state"], there["schedulable"], there["cordon_reason"]) == ("Maintenance", False, "new fans")
    assert {e["node"] for e in group.get("/endpoints?model_id=followed")["items"] if e["traffic"]} == {"a2"}
    kinds = [e["kind"] for e in group.get("/events?per_page=1000")["items"]]
    assert "move" in kinds and "drain" in kinds
    group.nf("node", "uncordon", "a1")
    assert node(group, "a1")["state"] == "Ready"
    for name in ("f1", "f2"):
        group.call("DELETE", f"/schedule/{name}")
    group.call("POST", "/node/a1/cordon", {})
    group.call("POST", "/node/a2/cordon", {})


def test_where_there_is_no_room_nothing_stops(group):
    nodes(group, b1=2)
    first = job(group, "full", gpu=2)
    look = json.loads(group.nf("node", "drain", "b1", "--dry-run", "-o", "json"))
    assert look["dry_run"] and look["leaving"][0]["reasons"], look
    assert node(group, "b1")["drain"] == "None", "a dry run drains nothing"
    group.nf("node", "drain", "b1", "--yes")
    eventually("blocked", lambda: node(group, "b1")["drain"] == "Blocked")
    time.sleep(2.5)  # Two more looks of the leader, which must change nothing.
    assert node(group, "b1")["drain"] == "Blocked"
    still = group.job("full")["replicas"][0]
    assert (still["status"], still["generation"]) == ("Ready", first["replicas"][0]["generation"])
    leaving = node(group, "b1")["leaving"][0]
    assert "Resources" in {reason["reason"] for reason in leaving["reasons"]}
    assert "Blocked (1 left)" in group.nf("get", "nodes")
    # Room appears, and it goes by itself.
    nodes(group, b2=2)
    eventually("drained", lambda: node(group, "b1")["drain"] == "Drained", 30)
    moved = group.job("full")["replicas"][0]
    told = [e for e in group.get("/events?per_page=1000")["items"] if e.get("request_id") == "full"]
    assert (moved["placement"]["node"], moved["generation"]) == ("b2", still["generation"] + 1), told
    group.nf("node", "uncordon", "b1")
    group.call("POST", "/node/b1/cordon", {})
    # Force does not wait.
    group.nf("node", "drain", "b2", "--force", "--yes")
    eventually("drained by force", lambda: node(group, "b2")["drain"] == "Drained", 30)
    assert group.job("full")["state"] == "Pending"
    group.call("DELETE", "/schedule/full")


def test_a_deadline_ends_the_patience(group):
    nodes(group, c1=1)
    job(group, "late")
    body = {"deadline": "2s", "reason": "move out"}
    answer = group.call("POST", "/node/c1/drain", body).json()
    assert answer["drain_deadline"] and answer["cordon_by"] == "operator", answer
    eventually("blocked first", lambda: node(group, "c1")["drain"] == "Blocked")
    eventually("then empty", lambda: node(group, "c1")["drain"] == "Drained", 20)
    group.call("DELETE", "/schedule/late")


def test_what_is_refused(group):
    refused = group.call("POST", "/node/none/drain", {})
    assert (refused.status_code, refused.json()["reason"]) == (404, "NotFound")
    refused = group.call("POST", "/node/none/drain", {"dry_run": True})
    assert (refused.status_code, refused.json()["reason"]) == (404, "NotFound")
    refused = group.call("POST", "/node/b1/drain", {"deadline": "yesterday"})
    assert (refused.status_code, refused.json()["field"]) == (400, "deadline")
    refused = group.call("POST", "/node/b1/drain", {"now": True})
    assert (refused.status_code, refused.json()["reason"]) == (400, "UnknownField")
    nodes(group, d1=1)
    refused = group.call("POST", "/node/d1/down")
    assert (refused.status_code, refused.json()["reason"]) == (409, "Conflict"), "it beats"
    group.nf("node", "drain", "d1", code=2)
    assert node(group, "d1")["drain"] == "None", "nobody said yes"
