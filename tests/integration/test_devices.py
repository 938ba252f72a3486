"""One of eight GPUs fails: it alone gets no work, its replica moves, the other seven serve on."""

import pytest
from nf import Serve, eventually


@pytest.fixture(scope="module")
def group(tmp_path_factory):
    with Serve(tmp_path_factory.mktemp("devices"), {"MAX_TENANT_GPUS": "64"}) as group:
        own = group.get("/nodes")["items"][0]["node_id"]
        assert group.call("POST", f"/node/{own}/cordon", {"reason": "tests"}).status_code == 200
        assert group.call("POST", "/node/register", {"node_id": "eight", "gpus": 8}).status_code == 201
        yield group


def node(group):
    return next(n for n in group.get("/nodes")["items"] if n["node_id"] == "eight")


def schedule(group, name, gpu=1, wanted="Running"):
    body = {"tenant_id": "t1", "model_id": "m1", "model_version": "v1", "request_id": name, "resources": {"gpu": gpu}}
    assert group.call("POST", "/schedule", body).status_code in (201, 202)
    return group.wait_state(name, wanted)


def devices(job):
    return [gpu["index"] if isinstance(gpu, dict) else gpu for r in job["replicas"] for gpu in r["placement"]["devices"]]


def test_one_gpu_of_eight_is_left_alone(group):
    jobs = {f"j{i}": schedule(group, f"j{i}") for i in range(7)}
    victim = jobs["j3"]["replicas"][0]
    uuid = victim["placement"]["devices"][0]
    index = next(d["index"] for d in node(group)["devices"] if d["uuid"] == uuid)
    for xid in (13, 31, 43, 45, 68, 109):
        group.nf("node", "fault", "eight", str(index), "--xid", str(xid))
    assert {d["health"] for d in node(group)["devices"]} == {"Healthy"}, "applications' errors quarantine nothing"
    said = group.nf("node", "fault", "eight", str(index), "--lost")
    assert f"eight {index} Quarantined: Lost" in said, said

    def moved():
        replica = group.job("j3")["replicas"][0]
        there = replica["placement"]
        return replica if replica["status"] == "Ready" and there["devices"] != [uuid] else None

    after = eventually("its replica runs on another GPU", moved)
    assert after["generation"] == victim["generation"] + 1
    for name in set(jobs) - {"j3"}:
        now = group.job(name)["replicas"][0]
        assert (now["status"], now["generation"]) == ("Ready", jobs[name]["replicas"][0]["generation"]), name
    # All seven others are taken now, the eighth is out of the count.
    assert group.job("j3")["state"] == "Running" and node(group)["total"]["gpu"] == 7
    assert schedule(group, "waits", wanted="Pending")["reasons"]
    assert "Quarantined (Lost, simulated)" in group.nf("get", "gpus")
    metrics = group.call("GET", "/metrics").text
    assert 'nf_gpus{state="quarantined"} 1' in metrics, [l for l in metrics.splitlines() if "nf_gpus" in l]
    events = [e for e in group.get("/events?per_page=1000")["items"] if e["kind"] == "device"]
    assert [(e["node"], e["device"], e["to"], e["why"]) for e in events] == [("eight", uuid, "Quarantined", "Lost")]
    group.nf("node", "heal", "eight", str(index))
    assert {d["health"] for d in node(group)["devices"]} == {"Healthy"}
    group.wait_state("waits", "Running")


def test_what_is_refused(group):
    call = lambda path, body=None: group.call("POST", f"/node/{path}", body or {})
    missing = call("eight/devices/8/fault", {"xid": 79})
    assert (missing.status_code, missing.json()["field"]) == (404, "device")
    assert call("none/devices/0/heal").status_code == 404
    both = call("eight/devices/0/fault", {"xid": 79, "fault": "lost"})
    assert (both.status_code, both.json()["field"]) == (400, "fault")
    wrong = call("eight/devices/0/fault", {"xid": -1})
    assert (wrong.status_code, wrong.json()["field"]) == (400, "xid")
