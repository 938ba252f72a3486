"""The placement policy, priorities and the tree of tenants, on one real member: its
agent really stops who has to give way, and only then does the other one start.
"""

import pytest
from nf import Serve, eventually

BODY = {"model_id": "m1", "model_version": "v1"}


@pytest.fixture(scope="module")
def group(tmp_path_factory):
    with Serve(tmp_path_factory.mktemp("placement"), {"GPU_NODES": "big:H100-80G:8"}) as group:
        group.nf("policy", "set", "fragmentation", "--min-run", "0s", "--preemption-delay", "0s")
        yield group


def schedule(group, tenant, gpus, code, **more):
    body = {**BODY, "tenant_id": tenant, "resources": {"gpu": gpus}, **more}
    answer = group.call("POST", "/schedule", body)
    assert answer.status_code == code, answer.text
    return answer.json()


def stop_all(group):
    for job in group.get("/schedule")["items"]:
        group.call("DELETE", f"/schedule/{job['request_id']}")
    eventually("no job is left", lambda: not group.get("/schedule")["items"])


def test_a_policy_is_a_file_and_takes_effect_at_once(group, tmp_path):
    file = tmp_path / "policy.toml"
    file.write_text(group.nf("policy", "get").replace('"fragmentation"', '"cost"').replace("cost = 100", "cost = 900"))
    changes = group.nf_json("policy", "diff", "--file", str(file))["changes"]
    assert [change["field"] for change in changes] == ["policy", "weights.cost"]
    assert group.get("/policy/placement")["policy"] == "fragmentation", "a look changes nothing"
    before = group.get("/policy/placement")["etag"]
    group.nf("policy", "set", "--file", str(file))
    now = group.get("/policy/placement")
    assert (now["policy"], now["weights"]["cost"], now["preemption"]["min_run"]) == ("cost", 900, 0)
    stale = group.call("PUT", "/policy/placement", {"policy": "spread"}, headers={"If-Match": f'"{before}"'})
    assert (stale.status_code, stale.json()["reason"]) == (409, "StaleIndex")
    group.nf("tenant", "create", "t1")
    job = schedule(group, "t1", 1, 201)
    why = group.job(job["request_id"])["placement"]["why"]
    assert why["policy"] == "cost" and set(why["terms"]) >= {"fragmentation", "topology", "cost"}
    assert "policy cost: " in group.nf("explain", job["request_id"])
    stop_all(group)
    group.nf("policy", "set", "fragmentation", "--min-run", "0s", "--preemption-delay", "0s")


@pytest.mark.parametrize("body,field", [
    ({"policy": "best"}, "policy"),
    ({"policy": "cost", "weights": {"cost": 5000}}, "weights.cost"),
    ({"policy": "cost", "weights": {"price": 1}}, "weights.price"),
    ({}, "policy"),
])
def test_a_bad_policy_is_refused_and_the_old_one_stays(group, body, field):
    before = group.get("/policy/placement")
    answer = group.call("PUT", "/policy/placement", body)
    assert (answer.status_code, answer.json()["field"]) == (400, field)
    assert group.get("/policy/placement")["version"] == before["version"]


def test_the_less_urgent_give_way_and_both_sides_say_so(group):
    group.nf("quota", "set", "t1", "--gpus", "16")
    low = schedule(group, "t1", 6, 201, constraints={"preemptible": True})["request_id"]
    group.wait_state(low, "Running")
    plan = group.call("POST", "/schedule", {
        **BODY, "tenant_id": "t1", "resources": {"gpu": 4}, "priority": 50, "dry_run": True}).json()
    assert plan["victims"] == [low] and plan["after_victims"][0]["node"] == "big"
    high = schedule(group, "t1", 4, 202, priority=50, check_plan=plan["digest"])
    assert high["reasons"][0]["reason"] == "WaitingForPreemptedJobs"
    group.wait_state(high["request_id"], "Running")
    gave = group.job(low)
    assert gave["gave_way"]["to"] == high["request_id"] and gave["gave_way"]["priority"] == 50
    events = [e for e in group.get("/events?per_page=1000")["items"] if e["kind"] == "gave_way"]
    assert [(e["request_id"], e["to"]) for e in events] == [(low, high["request_id"])]
    stale = group.call("POST", "/schedule", {
        **BODY, "tenant_id": "t1", "resources": {"gpu": 4}, "priority": 50, "check_plan": plan["digest"]})
    assert (stale.status_code, stale.json()["reason"]) == (409, "PlanChanged")
    stop_all(group)


def test_an_owner_gets_back_what_was_lent(group):
    group.nf("quota", "set", "org", "--gpus", "0")
    group.nf("quota", "set", "team-a", "--gpus", "4", "--parent", "org")
    group.nf("quota", "set", "team-b", "--gpus", "4", "--parent", "org", "--borrow", "3")
    first = schedule(group, "team-b", 4, 201)["request_id"]
    lent = schedule(group, "team-b", 2, 201, priority=90)["request_id"]
    group.wait_state(lent, "Running")
    tenant = group.get("/tenants/team-b/quota")
    assert (tenant["borrowed"], tenant["quota"]["parent"], tenant["quota"]["borrow"]) == (2.0, "org", 3.0)
    more = schedule(group, "team-b", 2, 202)
    assert more["reasons"][0]["reason"] == "WaitingForQuota"
    group.call("DELETE", f"/schedule/{more['request_id']}")
    own = schedule(group, "team-a", 4, 202)["request_id"]
    group.wait_state(own, "Running")
    assert group.job(lent)["replicas"][0]["why"] == "QuotaReclaimed"
    assert group.job(first)["state"] == "Running", "what is its own stays"
    said = group.nf("explain", lent)
    assert "WaitingForQuota" in said and "it would run after" in said
    circle = group.call("PUT", "/tenants/org/quota", {"gpu": 0, "parent": "team-a"})
    assert (circle.status_code, circle.json()["field"]) == (400, "parent")
    stop_all(group)


def test_a_waiting_job_says_what_would_let_it_run(group):
    node = "big"  # the other one, the member's own, has no GPU
    group.nf("quota", "set", "t9", "--gpus", "1")
    group.nf("node", "cordon", node)
    waits = schedule(group, "t9", 2, 202)["request_id"]
    assert group.job(waits)["remedy"] == [], "whoever only polls makes nobody search"
    remedy = group.explain(waits)["remedy"]
    assert len(remedy) == 2 and any("nf quota set t9 --gpus 2" in r for r in remedy)
    assert any(f"nf node uncordon {node}" in r for r in remedy)
    group.nf("node", "uncordon", node)
    group.nf("quota", "set", "t9", "--gpus", "2")
    group.wait_state(waits, "Running")
    stop_all(group)


def test_what_would_be_is_told_and_nothing_changes(group):
    group.nf("tenant", "create", "t1")
    group.call("PUT", "/tenants/t1/quota", {"gpu": 64})
    runs = schedule(group, "t1", 8, 201, constraints={"max_run_time": "1h", "stay": True})["request_id"]
    waits = schedule(group, "t1", 8, 202)["request_id"]
    group.wait_state(runs, "Running")
    assert group.job(runs)["constraints"]["stay"] is True
    soon = group.explain(waits)["expected_start"]
    assert soon["earliest"] <= soon["latest"], soon
    assert "will start between" in group.nf("explain", waits)
    assert group.job(runs)["expected_start"] is None
    policy = group.get("/policy/placement")
    tried = group.nf_json("policy", "try", "spread")
    assert (tried["placements"], tried["changed"], tried["would_be"]["policy"]) == (1, 0, "spread")
    assert tried["now"]["allocated"] == tried["would_be"]["allocated"] == 8
    assert group.get("/policy/placement")["etag"] == policy["etag"]
    seen = group.nf_json("sim", "cluster", "--add-nodes", "1xH100-80G:8")
    assert (seen["waiting"], seen["would_start"]) == (1, 1)
    assert seen["jobs"][0]["request_id"] == waits and seen["jobs"][0]["nodes"] == ["added-1"]
    assert group.nf_json("sim", "cluster", "--add-nodes", "1xA100-40G:4")["would_wait"] == 1
    assert group.job(waits)["state"] == "Pending", "nothing was committed"
    for path, body, field in [
        ("/cluster/what-if", {}, "add_nodes"),
        ("/cluster/what-if", {"add_nodes": [{"count": 5000}]}, "add_nodes[0].count"),
        ("/policy/placement/try", {"policy": "best"}, "policy"),
    ]:
        refused = group.call("POST", path, body)
        assert (refused.status_code, refused.json()["field"]) == (400, field), refused.text
    stop_all(group)


def test_a_budget_over_time_is_paid_ahead_and_counted(group):
    group.nf("quota", "set", "dept", "--gpus", "8", "--gpu-hours", "40/day", "--money", "1000/month")
    group.nf("quota", "set", "lab", "--gpus", "8", "--parent", "dept")
    quota = group.get("/tenants/dept/quota")["quota"]
    assert (quota["gpu_hours"], quota["money"]) == ({"day": 40.0}, {"month": 1000.0})
    group.nf("quota", "set", "dept", "--gpu-hours", "100/week", "--money", "none/month")
    quota = group.get("/tenants/dept/quota")["quota"]
    assert (quota["gpu_hours"], quota["money"]) == ({"day": 40.0, "week": 100.0}, {})
    # One GPU to the end of the day is at most 24 hours, but seven times 24 do not fit a week.
    refused = schedule(group, "lab", 1, 202)
    assert [(r["reason"], r["permanent"]) for r in refused["reasons"]] == [("BudgetExhausted", True)]
    never = group.call("POST", "/schedule", {
        **BODY, "tenant_id": "lab", "resources": {"gpu": 1}, "queue": "never"})
    assert (never.status_code, never.json()["reason"]) == (429, "QuotaExceeded")
    group.nf("quota", "set", "dept", "--gpu-hours", "none/week", "--gpu-hours", "40/day")
    group.wait_state(refused["request_id"], "Running")
    assert "BudgetExhausted" in group.nf("explain", schedule(group, "lab", 1, 202)["request_id"])
    rows = {(r["tenant_id"], r["window"]): r for r in group.get("/usage")["items"]}
    assert {window for tenant, window in rows if tenant == "dept"} == {"day", "week", "month"}
    day = rows[("dept", "day")]
    assert day["gpu_hours_limit"] == 40.0 and rows[("lab", "day")]["parent"] == "dept"
    assert 0 < day["gpu_hours_reserved"] <= 24 and day["to"].endswith("T00:00:00Z")
    eventually("it is counted", lambda: group.get("/usage?tenant_id=dept&window=day")["items"][0]["gpu_hours"] > 0)
    assert [r["window"] for r in group.nf_json("usage", "--tenant", "lab", "--window", "month")["items"]] == ["month"]
    csv = group.nf("usage", "--window", "day", "--csv").splitlines()
    assert csv[0].startswith("tenant_id,parent,window,from,to,gpu_hours") and any(line.startswith("lab,dept,day,") for line in csv)
    stop_all(group)


@pytest.mark.parametrize("body,field", [
    ({"gpu_hours": {"year": 1}}, "gpu_hours.year"),
    ({"gpu_hours": 5}, "gpu_hours"),
    ({"money": {"day": -1}}, "money.day"),
    ({"money": {"day": "much"}}, "money.day"),
])
def test_a_bad_budget_is_refused(group, body, field):
    answer = group.call("PUT", "/tenants/bad/quota", body)
    assert (answer.status_code, answer.json()["field"]) == (400, field), answer.text
    answer = group.call("GET", "/usage?window=year")
    assert (answer.status_code, answer.json()["field"]) == (400, "window")


def test_a_quota_may_name_device_types(group):
    group.nf("quota", "set", "typed", "--gpus", "H100-80G=2,A100-40G=4", "--lend", "H100-80G=1")
    quota = group.get("/tenants/typed/quota")
    assert quota["quota"]["device_types"] == {
        "A100-40G": {"gpu": 4.0, "borrow": None, "lend": None},
        "H100-80G": {"gpu": 2.0, "borrow": None, "lend": 1.0},
    }
    assert quota["gpu_quota"] == 6.0, "all of them, where nothing else is said"
    runs = schedule(group, "typed", 2, 201)["request_id"]
    assert group.get("/tenants/typed/quota")["used"]["device_types"] == {"H100-80G": 2.0}
    waits = schedule(group, "typed", 1, 202)
    assert "H100-80G GPUs" in waits["reasons"][0]["detail"] and waits["reasons"][0]["reason"] == "WaitingForQuota"
    group.nf("quota", "set", "typed", "--gpus", "H100-80G=3,A100-40G=none")
    assert list(group.get("/tenants/typed/quota")["quota"]["device_types"]) == ["H100-80G"]
    group.wait_state(waits["request_id"], "Running")
    assert group.job(runs)["state"] == "Running"
    bad = group.call("PUT", "/tenants/typed/quota", {"device_types": {"H100-80G": {"gpus": 1}}})
    assert (bad.status_code, bad.json()["field"]) == (400, "device_types.H100-80G.gpu")
    stop_all(group)


def test_a_part_of_a_gpu_that_nothing_enforces_is_not_given(group):
    """First what is there, then what it is told, then what it does once its tenant has accepted it."""
    group.nf("node", "register", "bare", "--gpus", "1", "--device-type", "L4", "--sharing", "none")
    gpus = [gpu for node in group.get("/nodes")["items"] for gpu in node.get("devices", [])]
    assert {gpu["sharing"] for gpu in gpus if gpu["device_type"] == "L4"} == {"none"}
    part = {"resources": {"gpu": 0.5, "device_type": "L4"}}
    job = schedule(group, "parts", 0.5, 202, **part)
    [reason] = [reason for reason in job["reasons"] if reason["reason"] == "FractionNotEnforced"]
    assert (reason["nodes"], reason["permanent"]) == (1, True)
    told = group.nf("explain", job["request_id"])
    assert "nf quota set parts --soft-sharing" in told and "whole GPU" in told, told
    plan = group.call("POST", "/schedule", {**BODY, "tenant_id": "parts", "dry_run": True, **part}).json()
    assert plan["reasons"][0]["reason"] == "FractionNotEnforced", plan
    never = {**BODY, "tenant_id": "parts", "queue": "never", **part}
    refused = group.call("POST", "/schedule", never)
    assert refused.status_code == 503 and "FractionNotEnforced" in refused.json()["detail"], refused.text
    group.nf("quota", "set", "parts", "--soft-sharing")
    assert group.get("/tenants/parts/quota")["quota"]["soft_sharing"] is True
    group.wait_state(job["request_id"], "Running")
    [replica] = group.job(job["request_id"])["replicas"]
    place = replica["placement"]
    assert (place["shares"], place["kept"]) == ([500], ["accepted"])
    group.nf("quota", "set", "parts", "--soft-sharing=false")
    assert group.job(job["request_id"])["state"] == "Running", "what runs goes on"
    assert schedule(group, "parts", 0.25, 202, resources={"gpu": 0.25, "device_type": "L4"})["state"] == "Pending"
    stop_all(group)


def test_who_has_to_go_may_save_its_state_and_who_waits_has_to_wait_first(group):
    group.nf("quota", "set", "t1", "--gpus", "16")
    group.nf("policy", "set", "--preemption-delay", "5s", "--max-grace", "30s")
    longer = group.call("POST", "/schedule", {
        **BODY, "tenant_id": "t1", "resources": {"gpu": 1}, "constraints": {"checkpoint_grace": "31s"}})
    assert (longer.status_code, longer.json()["field"]) == (400, "constraints.checkpoint_grace")
    assert "nf policy set --max-grace 31s" in longer.json()["detail"]
    low = schedule(group, "t1", 8, 201, constraints={"preemptible": True, "checkpoint_grace": "3s"})["request_id"]
    group.wait_state(low, "Running")
    high = schedule(group, "t1", 8, 202, priority=50)["request_id"]
    job = group.explain(high)
    assert job["may_preempt_from"] > job["history"][0]["at"], job
    waits = job["reasons"][-1]
    assert waits["reason"] == "PreemptionDelayNotElapsed" and low in waits["detail"], waits
    assert "may preempt others from" in group.nf("explain", high)
    eventually("it is told", lambda: group.job(low)["replicas"][0].get("saves_until"))
    assert group.job(low)["replicas"][0]["status"] == "Draining"
    # Its room is nobody else's meanwhile.
    other = schedule(group, "t1", 1, 202, priority=20, resources={"gpu": 1, "device_type": "H100-80G"})["request_id"]
    assert group.job(high)["reasons"][0]["reason"] == "WaitingForPreemptedJobs"
    assert "may save its state until" in group.nf("explain", low)
    group.wait_state(high, "Running")
    assert group.job(other)["state"] == "Pending"
    assert group.job(low)["gave_way"]["to"] == high
    stop_all(group)
    group.nf("policy", "set", "--preemption-delay", "0s", "--max-grace", "2m")


def test_no_more_of_a_service_is_taken_than_it_lets_be_missing(group):
    group.nf("quota", "set", "t1", "--gpus", "32")
    service = schedule(group, "t1", 2, 201, replicas=4, constraints={"preemptible": True, "max_unavailable": 1})
    service = service["request_id"]
    eventually("all serve", lambda: group.job(service)["ready"] == 4)
    first = schedule(group, "t1", 2, 202, priority=50)["request_id"]
    group.wait_state(first, "Running")
    second = schedule(group, "t1", 2, 202, priority=50)["request_id"]
    said = eventually("it is said whose budget it is",
                      lambda: [r for r in group.explain(second)["reasons"] if r["reason"] == "DisruptionBudget"])
    assert service in said[0]["detail"] and "max_unavailable" in said[0]["detail"]
    assert group.job(service)["ready"] == 3
    group.nf("node", "drain", "big", "--reason", "fans", "--deadline", "1s", "--yes")
    eventually("the drain is blocked", lambda: group.nf_json("describe", "node", "big")["drain"] == "Blocked")

    def held_back():
        leaving = group.nf_json("describe", "node", "big")["leaving"]
        said = [r for one in leaving for r in one["reasons"] if r["reason"] == "DisruptionBudget"]
        return said and all(service in r["detail"] for r in said)

    eventually("past its deadline it is the budget that holds it back", held_back)
    assert group.job(service)["ready"] == 3
    group.nf("node", "uncordon", "big")
    gang = group.call("POST", "/schedule", {**BODY, "tenant_id": "t1", "resources": {"gpu": 1}, "replicas": 2,
                                            "gang": True, "constraints": {"max_unavailable": 1}})
    assert (gang.status_code, gang.json()["field"]) == (400, "constraints.max_unavailable")
    stop_all(group)
