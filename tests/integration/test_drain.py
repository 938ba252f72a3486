"""A node is emptied without a request lost: replacements first, nothing stopped where
there is no room, and a client that follows the endpoints never meets a stopped replica.
"""

import json
import threading
import time

import pytest
import requests
from nf import Serve, eventually


@pytest.fixture(scope="module")
def group(tmp_path_factory):
    with Serve(tmp_path_factory.mktemp("drain"), {"MAX_TENANT_GPUS": "64"}) as group:
        # The member's own node would take everything.
        own = group.get("/nodes")["items"][0]["node_id"]
        assert group.call("POST", f"/node/{own}/cordon", {"reason": "tests"}).status_code == 200
        yield group


def node(group, name):
    return next(n for n in group.get("/nodes")["items"] if n["node_id"] == name)


def nodes(group, **gpus):
    for name, count in gpus.items():
        answer = group.call("POST", "/node/register", {"node_id": name, "gpus": count})
        assert answer.status_code in (200, 201), answer.text


def job(group, name, model="m1", gpu=1, wanted="Running", **more):
    body = {"tenant_id": "t1", "model_id": model, "model_version": "v1", "request_id": name, "resources": {"gpu": gpu}}
    answer = group.call("POST", "/schedule", {**body, **more})
    assert answer.status_code in (201, 202), answer.text
    return group.wait_state(name, wanted)


class Follower:
    """Sends requests to whatever the endpoint watch says takes traffic, and counts."""

    def __init__(self, group, model):
        self.group, self.model = group, model
        self.ready, self.sets, self.served, self.failed = [], [], 0, []
        self.over = threading.Event()
        self.threads = [threading.Thread(target=self.follow), *(threading.Thread(target=self.ask) for _ in range(4))]

    def follow(self):
        url = f"{self.group.url()}/endpoints?watch=true&model_id={self.model}"
        with requests.get(url, stream=True, timeout=30) as answer:
            for line in answer.iter_lines(chunk_size=1):
                if self.over.is_set():
                    return
                if line.startswith(b"data:") and b"items" in line:
                    items = json.loads(line[5:])["items"]
                    self.sets.append(items)
                    self.ready = [e["address"] for e in items if e["traffic"]]

    def ask(self):
        turn = 0
        while not self.over.is_set():
            addresses = self.ready
            if not addresses:
                time.sleep(0.005)
                continue
            turn += 1
            try:
                url = f"http://{addresses[turn % len(addresses)]}/infer"
                requests.post(url, data=b"x", timeout=5).raise_for_status()
                self.served += 1
            except requests.RequestException as error:
                self.failed.append(repr(error))

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self.over.set()
        # The stream says something: the follower sees that it is over.
        self.group.call("POST", "/schedule", {"tenant_id": "t1", "model_id": self.model, "model_version": "v1",
                                              "resources": {"gpu": 0.001}})
        for thread in self.threads:
            thread.join(15)


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
    assert (moved["placement"]["node"], moved["generation"]) == ("b2", still["generation"] + 1)
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
