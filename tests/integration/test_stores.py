"""Model stores elsewhere: from a publisher to a real S3 and on to a replica, and from a plain web server."""

import contextlib
import hashlib
import json
import os
import subprocess

import nf
import pytest
import servers

BIG = 17 << 20  # more than one part of an upload


def alone(*args, env=None, code=0):
    done = run(*args, env=env)
    assert done.returncode == code, f"{args}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert "canary-s3-secret" not in done.stdout + done.stderr
    return done.stdout if code == 0 else done.stderr


def program(folder):
    """A runtime that answers on its port, with a program that every test machine has."""
    path = folder / "runtime.json"
    serve = ["{python}", "-m", "http.server", "{port}", "--bind", "{host}", "--directory", "{dir}"]
    path.write_text(json.dumps({"argv": serve, "ready": {"path": "/"}}))
    return path


def model(folder, size=1000):
    folder.mkdir(parents=True)
    (folder / "weights.onnx").write_bytes(hashlib.sha256(b"seed").digest() * (size // 32))
    (folder / "sub").mkdir()
    (folder / "sub/config.json").write_text("{}")
    return folder


def ask(group, version, tenant="demo"):
    body = {"tenant_id": tenant, "model_id": "m", "model_version": version, "resources": {"cpu": 0.1}}
    answer = group.call("POST", "/schedule", body)
    return answer.status_code, answer.json()


def test_a_corrupt_version_is_in_quarantine_until_it_is_released(tmp_path):
    store = tmp_path / "store"
    alone("model", "publish", model(tmp_path / "m"), "--model", "m", "--version", "v1", "--store", f"file://{store}",
          "--runtime", program(tmp_path))
    weights = store / "m/v1/weights.onnx"
    assert weights.exists(), list(store.rglob("*"))
    good = weights.read_bytes()
    weights.chmod(0o644)
    weights.write_bytes(b"x" + good[1:])
    with nf.Serve(tmp_path / "serve", {"MODEL_STORE_URL": f"file://{store}"}) as group:
        code, body = ask(group, "v1")
        assert code == 201, body
        job = group.wait_state(body["request_id"], "Failed", limit=60)
        assert job["replicas"][0]["why"] == "ArtifactMismatch", job
        weights.write_bytes(good)
        code, body = ask(group, "v1")
        assert (code, body["reason"], body["policies"]["P7"]) == (409, "ModelCopyCorrupt", "block"), body
        lifts = ["model", "release", "m@v1", "--tenant", "demo", "--sha256"]
        assert " ".join(["nf", *lifts]) in body["detail"], body
        code, theirs = ask(group, "v1", tenant="other")
        assert code == 201, "another tenant's is judged by what its own nodes find"
        listed = group.call("GET", "/quarantine").json()["items"]
        assert [(q["tenant_id"], q["model_id"], q["model_version"]) for q in listed] == [("demo", "m", "v1")], listed
        assert "nf_models_quarantined 1" in group.call("GET", "/metrics").text
        assert group.call("GET", "/health").json()["components"]["model_store"]["status"] == "degraded"
        digest, other = listed[0]["sha256"], "0" * 64
        table = group.nf("get", "quarantine", "--tenant", "demo")
        for said in ("m@v1", listed[0]["node"], "ModelCopyCorrupt", " ".join(["nf", *lifts, digest])):
            assert said in table, table
        asked = {"tenant_id": "demo", "model_id": "m", "model_version": "v1", "sha256": other}
        answer = group.call("POST", "/quarantine/release", asked)
        assert (answer.status_code, answer.json()["reason"]) == (409, "Conflict"), answer.text
        assert digest in answer.text and other in answer.text, answer.text
        group.nf(*lifts, other, code=5)
        assert "released" in group.nf(*lifts, digest)
        assert "was in no quarantine" in group.nf(*lifts, digest)
        code, body = ask(group, "v1")
        assert code == 201, body
        group.wait_state(body["request_id"], "Running", limit=60)
        entries = [json.loads(line).get("entry", {}) for line in group.call("GET", "/audit?per_page=10000").text.splitlines()]
        told = [(e["action"], e.get("checks", {}).get("P7", {}).get("code")) for e in entries if "action" in e]
        assert ("ModelDeploy", "ArtifactMismatch") in told and ("JobSchedule", "ModelCopyCorrupt") in told, told
        assert ("ModelRelease", None) in told, told
        # Replicas outlive the process that started them; these must not outlive the test.
        for job in (body, theirs):
            group.nf("stop", job["request_id"], "--yes")
            group.wait_state(job["request_id"], "Cancelled", limit=60)


def test_an_operator_prefetches_to_every_node_and_asks_again_for_nothing_more(tmp_path):
    store, lab, port = tmp_path / "store", tmp_path / "lab", nf.free_port()
    alone("model", "publish", model(tmp_path / "m"), "--model", "m", "--version", "v1", "--store", f"file://{store}",
          "--runtime", program(tmp_path))
    alone("cluster", "init", "--dir", lab, "--members", f"node-1=127.0.0.1:{port + 1}")

    def token(*roles):
        named = [word for role in roles for word in ("--role", role)]
        return alone("token", "create", "--keys", lab / "tokens", "--subject", "ada", "--tenant", "demo", *named).strip()

    settings = {
        "SCHEDULER_PORT": port, "MODEL_STORE_URL": f"file://{store}", "NEURAL_FABRIC_MODE": "simulation",
        "GPU_NODES": "a:H100-80G:4,b:H100-80G:4,c:H100-80G:4",
    }
    with nf.Process(tmp_path / "serve", ["serve", "--config", str(lab / "node-1/nf.toml")], settings):
        base = {"NF_ADDR": f"http://127.0.0.1:{port}"}
        admin, operator = ({**base, "NF_TOKEN": token(role)} for role in ("admin", "operator"))
        listed = lambda: json.loads(alone("get", "nodes", "-o", "json", env=operator))["items"]
        named = lambda: {node["node_id"] for node in listed() if node["state"] == "Ready"}
        nf.eventually("the nodes are there", lambda: answers(named) and named() >= {"a", "b", "c"}, 40)
        assert all("host" not in node and "replicas" not in node for node in listed())
        alone("node", "cordon", "c", "--reason", "fans", env=admin)

        def fetch(*more, env=operator, code=0):
            done = run("model", "prefetch", "m@v1", "--tenant", "demo", *more, "-o", "json", env=env)
            assert done.returncode == code, done.stdout + done.stderr
            return done.stderr if not done.stdout else {r["node"]: r["request_id"] for r in json.loads(done.stdout)["items"]}

        first = fetch("--wait")
        assert set(first) >= {"a", "b"} and "c" not in first, first
        jobs = lambda: len(json.loads(alone("get", "jobs", "-o", "json", env=operator))["items"])
        assert fetch("--wait") == first and jobs() == len(first)
        # One that was stopped is brought anew.
        alone("stop", first["a"], "--yes", env=operator)
        again = fetch("--wait")
        assert again["b"] == first["b"] and again["a"] != first["a"] and jobs() == len(first)
        # What is begun is told of though the next one fails: only one may wait, and nothing comes to c.
        alone("quota", "set", "demo", "--waiting", "1", env=admin)
        rows = fetch("--node", "b", "--node", "c", "--node", "never", code=6)
        assert list(rows) == ["b", "c"] and rows["b"] == first["b"], rows
        assert "Forbidden" in fetch(env=admin, code=6)


def answers(ask):
    try:
        ask()
        return True
    except AssertionError:
        return False


def run(*args, env=None):
    kept = {k: v for k, v in os.environ.items() if k in ("PATH", "HOME")}
    words = [str(nf.NF), *map(str, args)]
    return subprocess.run(words, env={**kept, **(env or {})}, capture_output=True, text=True, timeout=120, check=False)


def test_what_was_prefetched_is_there_before_anybody_starts_it(tmp_path):
    store = tmp_path / "store"
    alone("model", "publish", model(tmp_path / "m"), "--model", "m", "--version", "v1", "--store", f"file://{store}",
          "--runtime", program(tmp_path))
    weights = store / "m/v1/weights.onnx"
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    settings = {"MODEL_STORE_URL": f"file://{store}", "GPU_NODES": "a:H100-80G:4,b:H100-80G:4"}
    with nf.Serve(tmp_path / "serve", settings) as group:
        told = json.loads(group.nf("model", "prefetch", "m@v1", "--tenant", "demo", "--node", "b", "--wait", "-o", "json"))
        (row,) = told["items"]
        assert (row["node"], row["state"]) == ("b", "Running"), row
        assert [path.name for path in tmp_path.rglob("cache/sha256/*") if path.name == digest] == [digest]
        table = group.nf("get", "jobs", "-o", "wide")
        assert "prefetch" in table and row["request_id"] in table, table
        # It serves nobody, and is no service.
        assert not group.get("/services")["items"] and not group.get("/endpoints")["items"]
        # The store has them no more; who starts now goes where they are.
        weights.unlink()
        body = {"tenant_id": "demo", "model_id": "m", "model_version": "v1", "resources": {"gpu": 1}}
        job = group.call("POST", "/schedule", body).json()
        assert job["placement"]["node"] == "b" and job["placement"]["why"]["terms"]["locality"] == 1000, job
        group.wait_state(job["request_id"], "Running", limit=60)
        # Nothing else goes with it, and nothing is brought that no store knows.
        for more, field in (({}, "constraints.node"), ({"constraints": {"node": "b"}}, "resources")):
            answer = group.call("POST", "/schedule", {**body, "prefetch": True, **more})
            assert (answer.status_code, answer.json()["field"]) == (400, field), answer.text
        group.nf("model", "prefetch", "m@v9", "--tenant", "demo", "--node", "b", code=4)
        # A node that is drained waits for no files.
        group.nf("stop", job["request_id"], "--yes")
        group.wait_state(job["request_id"], "Cancelled", limit=60)
        group.nf("node", "drain", "b", "--yes")
        drain = lambda: next(node for node in group.get("/nodes")["items"] if node["node_id"] == "b")["drain"]
        nf.eventually("the node is empty", lambda: drain() == "Drained", 30)
        group.nf("stop", row["request_id"], "--yes")
        group.wait_state(row["request_id"], "Cancelled", limit=60)


@servers.needs("moto")
def test_from_a_publisher_through_s3_to_a_replica(tmp_path):
    with servers.s3(tmp_path / "s3", "models") as (settings, client):
        url, keys = "s3://models/nf", tmp_path / "keys"
        big = model(tmp_path / "m", BIG)
        alone("model", "keygen", keys)
        halves = ["--key", keys / "ecdsa-p256.key.pem", "--key", keys / "ml-dsa-65.key.pem"]

        def publish(version, code=0):
            named = ["--model", "m", "--version", version, "--store", url, "--runtime", program(tmp_path)]
            told = alone("model", "publish", big, *named, "-o", "json", env=settings, code=code)
            if code == 0:
                named = ["--tenant", "demo", "--model", "m", "--model-version", version, "--store", url]
                named += ["--sha256", json.loads(told)["sha256"]]
                alone("model", "sign", big, *named, *halves, env=settings)
            return told

        publish("v1")
        publish("v1")
        there = {item["Key"] for item in client.list_objects_v2(Bucket="models")["Contents"]}
        files = {f"nf/m/v1/{name}" for name in ("manifest.json", "weights.onnx", "sub/config.json")}
        assert there == files | {"nf/.signatures/m/v1/demo.sig"}
        assert client.get_object(Bucket="models", Key="nf/m/v1/weights.onnx")["ContentLength"] == BIG

        pulled = json.loads(
            alone("model", "pull", "m@v1", "--store", url, "--to", tmp_path / "out", "-o", "json", env=settings)
        )
        assert (tmp_path / "out/weights.onnx").read_bytes() == (big / "weights.onnx").read_bytes()
        assert {f["scheme"] for f in pulled["fetched"]} == {"s3"} and sum(f["bytes"] for f in pulled["fetched"]) == BIG + 2
        assert "ModelNotFound" in alone("model", "pull", "m@v9", "--store", url, env=settings, code=4)

        # One byte of what v2 is made of changes in the bucket. Other bytes than v1's, which the node will have.
        (big / "weights.onnx").write_bytes(b"other" * 1000)
        publish("v2")
        weights = bytearray((big / "weights.onnx").read_bytes())
        weights[-1] ^= 1
        client.put_object(Bucket="models", Key="nf/m/v2/weights.onnx", Body=bytes(weights))
        (big / "sub/config.json").write_text("[]")
        assert "Conflict" in publish("v1", code=5), "a version never changes"

        own = {**settings, "MODEL_STORE_URL": url, "COSIGN_KEY_PATH": keys / "signing.pub.pem"}
        with nf.Serve(tmp_path / "serve", own) as group:
            code, body = ask(group, "v1")
            assert code == 201 and body["policies"]["P2"] == "pass", body
            job = group.wait_state(body["request_id"], "Running", limit=60)
            metrics = group.call("GET", "/metrics").text
            assert f'nf_model_fetch_bytes_total{{scheme="s3"}} {BIG + 2}' in metrics
            log = group.nf("logs", body["request_id"])
            assert "from a s3 store, key exchange none" in log, log
            assert job["replicas"][0]["status"] == "Ready", job
            group.nf("stop", body["request_id"], "--yes")
            group.wait_state(body["request_id"], "Cancelled", "Succeeded")

            code, body = ask(group, "v2")
            assert code == 201, body
            job = group.wait_state(body["request_id"], "Failed", limit=60)
            assert job["replicas"][0]["why"] == "ArtifactMismatch", job
            assert "canary-s3-secret" not in group.output + group.nf("config", "view")
        checks = json.loads(alone("precheck", "--out", tmp_path / "pre", "-o", "json", env={**settings, "MODEL_STORE_URL": url}))
        assert {c["check"]: c["status"] for c in checks["checks"]}["model_store"] == "OK", checks


def test_a_plain_web_server_is_a_store_that_is_only_read(tmp_path):
    store = tmp_path / "store"
    made = ["model", "publish", model(tmp_path / "m"), "--model", "m", "--runtime", program(tmp_path)]
    alone(*made, "--version", "v1", "--store", f"file://{store}")
    with servers.web(store) as url:
        settings = {"MODEL_STORE_URL": url, "NF_STORE_HOSTS": "127.0.0.1"}
        assert "read alone" in alone(*made, "--version", "v2", "--store", url, env=settings, code=2)
        with nf.Serve(tmp_path / "serve", settings) as group:
            code, body = ask(group, "v1")
            assert code == 201, body
            group.wait_state(body["request_id"], "Running")
            assert 'nf_model_fetch_bytes_total{scheme="http"}' in group.call("GET", "/metrics").text
            group.nf("stop", body["request_id"], "--yes")
            group.wait_state(body["request_id"], "Cancelled", "Succeeded")
    # The server is gone: a version that nobody asked for before cannot be looked up.
    with nf.Serve(tmp_path / "later", settings) as group:
        code, body = ask(group, "v1")
        assert (code, body["reason"]) == (503, "StoreUnavailable") and body["retry_after_ms"] > 0, body


def test_a_retry_is_answered_without_the_store(tmp_path):
    store = tmp_path / "store"
    made = ["model", "publish", model(tmp_path / "m"), "--model", "m", "--runtime", program(tmp_path)]
    alone(*made, "--version", "v1", "--store", f"file://{store}")
    body = {"tenant_id": "demo", "model_id": "m", "model_version": "v1", "resources": {"cpu": 0.1}}
    with contextlib.ExitStack() as web:
        url = web.enter_context(servers.web(store))
        with nf.Serve(tmp_path / "serve", {"MODEL_STORE_URL": url, "NF_STORE_HOSTS": "127.0.0.1"}) as group:
            key = {"headers": {"Idempotency-Key": "once"}}
            first = group.call("POST", "/schedule", body, **key)
            assert first.status_code == 201, first.text
            named = group.call("POST", "/schedule", {**body, "request_id": "r1"})
            assert named.status_code == 201, named.text
            # What the store said is forgotten soon, and then it is asked in vain, by nodes as well: a job may wait by now.
            web.close()
            nf.eventually("a new job is not let in", lambda: ask(group, "v1")[0] == 503)
            again = group.call("POST", "/schedule", body, **key)
            assert again.ok and again.headers["Idempotent-Replayed"] == "true", again.text
            assert again.json()["request_id"] == first.json()["request_id"]
            again = group.call("POST", "/schedule", {**body, "request_id": "r1"})
            assert again.ok and again.headers["Idempotent-Replayed"] == "true", again.text
            other = group.call("POST", "/schedule", {**body, "model_version": "v2", "request_id": "r1"})
            assert (other.status_code, other.json()["reason"]) == (409, "IdempotencyConflict"), other.text


@pytest.mark.parametrize("host", ["127.0.0.1", "2130706433", "[::ffff:127.0.0.1]", "localhost"])
def test_a_store_that_is_not_listed_is_not_called(tmp_path, host):
    store = tmp_path / "store"
    alone("model", "publish", model(tmp_path / "m"), "--model", "m", "--version", "v1", "--store", f"file://{store}")
    with servers.web(store) as url:
        there = url.replace("127.0.0.1", host)
        said = alone("model", "pull", "m@v1", "--store", there, "--to", tmp_path / "out", code=2)
        assert "StoreUrlForbidden" in said and "NF_STORE_HOSTS" in said, said


def test_a_member_says_what_its_store_may_not_be(tmp_path):
    with servers.web(tmp_path) as url:
        with nf.Serve(tmp_path / "serve", {"MODEL_STORE_URL": url}) as group:
            code, body = ask(group, "v1")
            assert (code, body["reason"], body["field"]) == (400, "StoreUrlForbidden", "model_version"), body
    for bad in ("http://me:canary-s3-secret@host/x", "s3://"):
        settings = {"MODEL_STORE_URL": bad, "SCHEDULER_PORT": nf.free_port(), "NF_DATA_DIR": tmp_path / "data"}
        member = nf.Process(tmp_path / "bad", ["serve"], settings)
        assert member.wait(30) == 2, member.output
        assert "MODEL_STORE_URL" in member.output and "canary" not in member.output, member.output
