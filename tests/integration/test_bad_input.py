"""Bad input, row by row: each has a status, a stable token and a text that names
the field and the next step. Nothing here may end the process.
"""

import json
import socket

import pytest
import requests
from nf import Process, Serve, free_port

GOOD = {"tenant_id": "t1", "model_id": "m1", "model_version": "v1", "resources": {"gpu": 1}}


@pytest.fixture(scope="module")
def group(tmp_path_factory):
    with Serve(tmp_path_factory.mktemp("bad")) as group:
        yield group


def changed(**fields):
    return {**GOOD, **fields}


# (what, body, status, token, field)
BODIES = [
    ("unknown field", changed(colour="red"), 400, "UnknownField", "colour"),
    ("unknown field inside", changed(resources={"gpu": 1, "gpus": 2}), 400, "UnknownField", "resources.gpus"),
    ("wrong type", changed(tenant_id=7), 400, "InvalidArgument", "tenant_id"),
    ("wrong type inside", changed(resources="many"), 400, "InvalidArgument", "resources"),
    ("negative", changed(resources={"gpu": -1}), 400, "InvalidArgument", "resources.gpu"),
    ("negative count", changed(replicas=-1), 400, "InvalidArgument", "replicas"),
    ("zero replicas", changed(replicas=0), 400, "InvalidArgument", "replicas"),
    ("NaN as text", changed(resources={"gpu": "NaN"}), 400, "InvalidArgument", "resources.gpu"),
    ("2^63", changed(resources={"gpu": 2**63}), 400, "InvalidArgument", "resources.gpu"),
    ("2^63 bytes", changed(resources={"gpu": 1, "mem": 2**63}), 400, "InvalidArgument", "resources.mem"),
    ("one and a half devices", changed(resources={"gpu": 1.5}), 400, "InvalidArgument", "resources.gpu"),
    ("no unit we know", changed(resources={"mem": "4 potatoes"}), 400, "InvalidArgument", "resources.mem"),
    ("empty name", changed(tenant_id=""), 400, "InvalidArgument", "tenant_id"),
    ("missing name", {k: v for k, v in GOOD.items() if k != "model_id"}, 400, "InvalidArgument", "model_id"),
    ("4 KiB name", changed(model_id="m" * 4096), 400, "InvalidArgument", "model_id"),
    ("climbing name", changed(model_id="../x"), 400, "InvalidArgument", "model_id"),
    ("climbing id", changed(request_id="../../etc/passwd"), 400, "InvalidArgument", "request_id"),
    ("control character", changed(model_version="v1\u0000"), 400, "InvalidArgument", "model_version"),
    ("priority out of range", changed(priority=100000), 400, "InvalidArgument", "priority"),
    ("word we do not know", changed(queue="sometimes"), 400, "InvalidArgument", "queue"),
]


@pytest.mark.parametrize("what,body,status,token,field", BODIES, ids=[row[0] for row in BODIES])
def test_body(group, what, body, status, token, field):
    problem(group.call("POST", "/schedule", body), status, token, field)


def problem(answer, status, token, field=None):
    assert answer.status_code == status, answer.text
    assert answer.headers["Content-Type"].startswith("application/problem+json")
    body = answer.json()
    assert body["reason"] == token, body
    assert body["detail"] and body["call_id"] and body["status"] == status and body["simulation"] is True
    if field:
        assert body["field"] == field, body
        assert field.split(".")[-1] in body["detail"], "the text names the field"
    return body


def raw(group, data, content_type="application/json", path="/schedule"):
    return requests.post(group.url() + path, data=data, headers={"Content-Type": content_type}, timeout=15)


def test_not_json(group):
    problem(raw(group, b'{"tenant_id": '), 400, "InvalidArgument")
    problem(raw(group, b""), 400, "InvalidArgument")
    problem(raw(group, b"[1, 2]"), 400, "InvalidArgument")
    problem(raw(group, b'{"tenant_id": NaN}'), 400, "InvalidArgument")
    problem(raw(group, b"\xff\xfe{}"), 400, "InvalidArgument")


def test_deep_json(group):
    problem(raw(group, b'{"resources":' + b"[" * 100_000 + b"]" * 100_000 + b"}"), 400, "InvalidArgument")


def test_wrong_content_type(group):
    problem(raw(group, json.dumps(GOOD), "text/plain"), 415, "UnsupportedMediaType")


def test_oversized_body(group):
    body = json.dumps(changed(approved_by="a" * (2 << 20)))
    problem(raw(group, body), 413, "TooLarge")


def test_unknown_method_and_path(group):
    problem(group.call("PATCH", "/schedule", {}), 405, "MethodNotAllowed")
    problem(group.call("GET", "/no/such/path"), 404, "NotFound")


def test_unknown_id(group):
    for method in ("GET", "DELETE"):
        problem(group.call(method, "/schedule/no-such-job?tenant_id=t1"), 404, "NotFound")
    problem(group.call("GET", "/schedule/..%2f..%2fetc"), 400, "InvalidArgument")


def test_unknown_tenant_is_empty_not_an_error(group):
    assert group.get("/schedule?tenant_id=nobody")["items"] == []
    problem(group.call("GET", "/schedule?tenant_id=No%20Body"), 400, "InvalidArgument", "tenant_id")


def test_quota_exceeded_waits_or_refuses(group):
    first = group.call("POST", "/schedule", changed(tenant_id="small", resources={"gpu": 2}))
    assert first.status_code == 201, first.text
    second = group.call("POST", "/schedule", changed(tenant_id="small"))
    assert second.status_code == 202 and second.json()["reasons"][0]["reason"] == "WaitingForQuota", second.text
    refused = problem(group.call("POST", "/schedule", changed(tenant_id="small", queue="never")), 429, "QuotaExceeded")
    assert refused["retry_after_ms"] > 0


def test_what_no_node_will_ever_have(group):
    answer = group.call("POST", "/schedule", changed(tenant_id="dreamer", resources={"gpu": 1, "device_type": "X9000"}))
    assert answer.status_code == 202, answer.text
    reason = {r["reason"]: r for r in answer.json()["reasons"]}["NoMatchingDevice"]
    assert reason["permanent"] is True and reason["detail"]


def test_duplicate_key_with_another_body(group):
    key = {"Idempotency-Key": "twice"}
    assert group.call("POST", "/schedule", changed(tenant_id="keys"), headers=key).status_code == 201
    other = group.call("POST", "/schedule", changed(tenant_id="keys", model_id="other"), headers=key)
    problem(other, 409, "IdempotencyConflict")


def test_stale_plan(group):
    wrong = group.call("POST", "/schedule", changed(tenant_id="planner", check_plan="0" * 32))
    problem(wrong, 409, "PlanChanged")


def test_stale_index(group):
    set_quota = lambda gpus, **headers: group.call("PUT", "/tenants/seen/quota", {"gpu": gpus}, headers=headers)
    first = set_quota(4)
    seen = first.headers["ETag"]
    assert first.status_code == 200 and seen == f'"{first.json()["etag"]}"'
    assert set_quota(8, **{"If-Match": seen}).status_code == 200
    problem(set_quota(2, **{"If-Match": seen}), 409, "StaleIndex", "If-Match")
    assert group.get("/tenants/seen/quota")["quota"]["gpu"] == 8
    problem(set_quota(2, **{"If-Match": "yesterday"}), 400, "InvalidArgument", "If-Match")
    node = group.get("/nodes")["items"][0]
    cordon = lambda: group.call("POST", f"/node/{node['node_id']}/cordon", {"reason": "fans"},
                                headers={"If-Match": f'"{node["etag"]}"'})
    assert cordon().status_code == 200
    assert group.call("POST", f"/node/{node['node_id']}/cordon", {"reason": "other"}).status_code == 200
    problem(cordon(), 409, "StaleIndex", "If-Match")
    assert group.call("POST", f"/node/{node['node_id']}/uncordon").status_code == 200


def test_bad_page(group):
    problem(group.call("GET", "/schedule?per_page=100000"), 400, "InvalidArgument", "per_page")
    problem(group.call("GET", "/schedule?next_token=nonsense"), 400, "InvalidArgument", "next_token")
    problem(group.call("GET", "/schedule?colour=red"), 400, "UnknownField", "colour")


def test_bad_node(group):
    problem(group.call("POST", "/node/register", {"node_id": "../x"}), 400, "InvalidArgument", "node_id")
    problem(group.call("POST", "/node/register", {"node_id": "n1", "gpus": 1_000_000}), 400, "InvalidArgument", "gpus")


def test_it_still_lives(group):
    assert group.child.poll() is None and group.get("/health")["status"] == "ok"


# What refuses to start: exit 2 and one line that names the setting.
STARTS = [
    ("unparsable port", {"SCHEDULER_PORT": "eighty"}, "SCHEDULER_PORT"),
    ("unparsable quota", {"MAX_TENANT_GPUS": "-3"}, "MAX_TENANT_GPU"),
    ("both quotas, different", {"MAX_TENANT_GPUS": "3", "MAX_TENANT_GPUs": "4"}, "MAX_TENANT_GPU"),
    ("unknown mode", {"NEURAL_FABRIC_MODE": "dreaming"}, "NEURAL_FABRIC_MODE"),
    ("unknown PQC mode", {"PQC_MODE": "yes"}, "PQC_MODE"),
    ("plain text in public", {"PQC_MODE": "off", "NF_LISTEN": "0.0.0.0:0"}, "PQC_MODE"),
    ("production without its parts", {"NEURAL_FABRIC_MODE": "production"}, "MODEL_STORE_URL"),
]


def refuses(folder, settings, named, args=("serve",), codes=(2,), token="InvalidSetting"):
    port = free_port()
    own = {"SCHEDULER_PORT": port, "NF_DATA_DIR": folder / "data", **settings}
    process = Process(folder, list(args), own)
    try:
        code = process.wait(15)
    finally:
        process.child.kill()
        process.child.wait()
    assert code in codes, f"exit {code}:\n{process.output}"
    assert named in process.output and "panicked" not in process.output, process.output
    assert f"({token})" in process.output, process.output
    return process.output


@pytest.mark.parametrize("what,settings,named", STARTS, ids=[row[0] for row in STARTS])
def test_refuses_to_start(tmp_path, what, settings, named):
    refuses(tmp_path, settings, named)


def test_corrupt_config_file(tmp_path):
    file = tmp_path / "nf.toml"
    for text, named in [("scheduler_port = [", "nf.toml"), ("colour = 'red'\n", "colour")]:
        file.write_text(text)
        refuses(tmp_path, {}, named, ("serve", "--config", str(file)))


def test_port_taken(tmp_path):
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        # Nothing is wrong with the settings, so it is a failure (1), not a usage error (2).
        refuses(tmp_path, {"SCHEDULER_PORT": port}, str(port), codes=(1,), token="PortTaken")


def test_data_of_another_cluster(tmp_path):
    with Serve(tmp_path, {"NF_CLUSTER": "ours"}):
        pass
    refuses(tmp_path, {"NF_CLUSTER": "theirs"}, "choose another --data-dir", token="OtherCluster")


def test_a_data_file_cut_short(tmp_path):
    with Serve(tmp_path) as group:
        assert group.call("POST", "/schedule", GOOD).status_code == 201
    # Something that recovery can't do without: the newest table file, or the manifest.
    files = [f for f in (tmp_path / "data").rglob("*") if f.is_file() and (f.suffix == ".sst" or "MANIFEST" in f.name)]
    victim = max(files, key=lambda f: f.stat().st_size)
    victim.write_bytes(victim.read_bytes()[: victim.stat().st_size // 2])
    process = Process(tmp_path, ["serve"], {"SCHEDULER_PORT": free_port(), "NF_DATA_DIR": tmp_path / "data"})
    try:
        code = process.wait(20)
    finally:
        process.child.kill()
        process.child.wait()
    assert code != 0 and "panicked" not in process.output, process.output
    last = process.output.strip().splitlines()[-1]
    assert str(victim.parent) in last and "join under a new name" in last and "(DataDamaged)" in last, process.output
