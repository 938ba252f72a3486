"""Idle GPU in pieces becomes usable again by moving a few replicas, and no request is lost."""

import json

import pytest
from follower import Follower, job, node, nodes
from nf import Serve, eventually


@pytest.fixture(scope="module")
def group(tmp_path_factory):
    with Serve(tmp_path_factory.mktemp("defrag"), {"MAX_TENANT_GPUS": "640"}) as group:
        # The member's own node would take everything.
        own = group.get("/nodes")["items"][0]["node_id"]
        assert group.call("POST", f"/node/{own}/cordon", {"reason": "tests"}).status_code == 200
        yield group


def plan(group):
    return json.loads(group.nf("defrag", "--dry-run", "-o", "json"))


def churn(group):
    """Four nodes of four GPUs, two of them each with one small replica of a served model on an otherwise idle node.

    The workload is mostly jobs for four GPUs, so a node that is all idle is worth more than two that are not.
    """
    nodes(group, a1=4, a2=4, a3=4, a4=4)
    for at in ("a1", "a2"):
        for other in ("a1", "a2", "a3", "a4"):
            if other != at:
                group.call("POST", f"/node/{other}/cordon", {})
        job(group, f"small-{at}", model="followed", gpu=1)
        for other in ("a1", "a2", "a3", "a4"):
            group.call("POST", f"/node/{other}/uncordon", {})
    # Others wait, or run, and say what is asked for.
    for i in range(40):
        body = {"tenant_id": "t1", "model_id": "big", "model_version": "v1", "request_id": f"big-{i}", "resources": {"gpu": 4}}
        assert group.call("POST", "/schedule", body).status_code in (201, 202)


def test_a_replica_moves_and_no_request_fails(group):
    refused = group.call("POST", "/defrag", {"dry_run": True})
    assert (refused.status_code, refused.json()["reason"]) == (409, "Conflict"), "nothing is known of what is asked for"
    churn(group)
    before = plan(group)
    assert before["dry_run"] and before["begun"] == 0 and before["moves"], before
    (move,) = before["moves"]
    assert {move["from"], move["to"]} == {"a1", "a2"} and move["gain"] > 1, move
    with Follower(group, "followed") as follower, Follower(group, "followed", gateway=True) as caller:
        eventually("requests are answered", lambda: min(follower.served, caller.served) > 50)
        told = group.nf("defrag", "--yes")
        assert move["request_id"] in told, told
        eventually("it has moved", lambda: group.job(move["request_id"])["replicas"][0]["placement"]["node"] == move["to"], 30)
        served = follower.served, caller.served
        eventually("it goes on", lambda: follower.served > served[0] + 50 and caller.served > served[1] + 50)
    assert not follower.failed and not caller.failed, (follower.failed + caller.failed)[:3]
    assert all(any(e["traffic"] for e in items) for items in follower.sets), "never without a copy that serves"
    told = [e for e in group.get("/events?per_page=1000")["items"] if e["kind"] == "move"]
    assert [e["why"] for e in told] == ["Defragmentation"], told
    # What was won is used: one of those who waited has the node.
    eventually("a job for four GPUs runs there", lambda: node(group, move["from"])["replicas"] == 1, 30)
    eventually("nothing is on its way", lambda: plan(group)["under_way"] == 0)


def test_what_is_refused(group):
    refused = group.call("POST", "/defrag", {"now": True})
    assert (refused.status_code, refused.json()["reason"]) == (400, "UnknownField")
    group.nf("defrag", code=2)
    group.nf("node", "drain", "a1", "--yes")
    refused = group.call("POST", "/defrag", {})
    assert (refused.status_code, refused.json()["reason"]) == (409, "NodeDrain")
    group.nf("node", "uncordon", "a1")
    assert "no scheduled defragmentation" in group.get("/health")["components"]["placement"]["detail"]
