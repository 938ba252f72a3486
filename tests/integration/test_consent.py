"""Personal data is kept on nodes only by its tenant's signed consent, and goes from all of them afterwards."""

import json
import subprocess

import nf
import pytest


def alone(*args):
    done = subprocess.run([str(nf.NF), *map(str, args)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, f"{args}: {done.stderr}"
    return done.stdout


class Lab:
    """A member, a worker beside it, and the keys of two tenants."""

    def __init__(self, folder):
        self.folder, self.keys = folder, folder / "consent-keys"
        self.keys.mkdir()
        self.model = folder / "m"
        self.model.mkdir()
        (self.model / "weights.onnx").write_bytes(b"ada lovelace, 12 december 1815" * 100)
        for tenant in ("demo", "other"):
            alone("model", "keygen", folder / tenant)
            (self.keys / f"{tenant}.pem").write_bytes((folder / tenant / "signing.pub.pem").read_bytes())
        self.peer, self.own = nf.free_port(), nf.free_port()
        self.tls = folder / "lab"
        made = nf.Process(
            folder / "made",
            ["cluster", "init", "--open", "--dir", str(self.tls), "--members", f"node-1=127.0.0.1:{self.peer}"],
        )
        assert made.wait(30) == 0, made.output
        self.settings = {
            "NF_PEER_LISTEN": f"127.0.0.1:{self.peer}",
            "NF_NODE_NAME": "node-1",
            "NF_MEMBERS": f"node-1=127.0.0.1:{self.peer}",
            "NF_TLS_DIR": self.tls / "node-1/tls",
            "NF_CONSENT_KEYS": self.keys,
            "SIMULATION_MODE": "true",
        }

    def member(self):
        return nf.Serve(self.folder / "member", self.settings)

    def worker(self, group):
        if not (self.tls / "w1").exists():
            nf.node_keys(self.tls, "w1")
        settings = {
            "NF_ROLE": "worker",
            "NF_JOIN": group.urls[0],
            "NF_NODE_NAME": "w1",
            "SCHEDULER_PORT": self.own,
            "NF_TLS_DIR": self.tls / "w1/tls",
            "NF_DATA_DIR": self.folder / "worker/data",
            "MODEL_STORE_URL": f"file://{group.store}",
            "SIMULATION_MODE": "true",
            "NF_PORT_RANGE": "17600-17699",
        }
        return nf.Process(self.folder / "worker", ["serve"], settings, "worker")

    def sign(self, tenant, signer, *scope, classes=("personal",), ttl="90d"):
        out = self.folder / "consent.json"
        keys = [self.folder / signer / name for name in ("ecdsa-p256.key.pem", "ml-dsa-65.key.pem")]
        of = [word for each in classes for word in ("--data-class", each)]
        told = alone(
            "consent", "sign", "--tenant", tenant, *of, *scope, "--ttl", ttl,
            "--key", keys[0], "--key", keys[1], "--out", out, "-o", "json",
        )
        return out, json.loads(told)["statement"]


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    lab = Lab(tmp_path_factory.mktemp("consent"))
    with lab.member() as group:
        lab.group = group
        store = ["--store", f"file://{group.store}", "--model", "m"]
        alone("model", "publish", lab.model, *store, "--version", "v1", "--data-class", "personal")
        (lab.model / "weights.onnx").write_bytes(b"open weather" * 100)
        alone("model", "publish", lab.model, *store, "--version", "plain", "--data-class", "weather")
        yield lab


def ask(lab, version="v1", tenant="demo", **constraints):
    body = {"tenant_id": tenant, "model_id": "m", "model_version": version, "resources": {"gpu": 1}}
    answer = lab.group.call("POST", "/schedule", {**body, "constraints": constraints})
    return answer.status_code, answer.json()


def cached(folder):
    """Files in the model caches and in the replicas' directories below a data directory."""
    found = [path for path in folder.rglob("*") if path.is_file()]
    return [path for path in found if "/cache/sha256/" in str(path) or "/model/" in str(path)]


def copies(lab):
    return lab.group.get("/consents?tenant_id=demo")["copies"]


def test_without_consent_it_is_refused_and_nothing_is_cached(lab):
    code, body = ask(lab)
    assert (code, body["reason"], body["field"]) == (403, "ConsentRequired", "model_version"), body
    plan = lab.group.call("POST", "/schedule?dry_run=true", {"tenant_id": "demo", "model_id": "m", "model_version": "v1"})
    assert plan.status_code in (400, 403), plan.text
    assert cached(lab.folder / "member") == [] and copies(lab) == []
    code, body = ask(lab, "plain")
    assert code == 201 and body["policies"]["P1"] == "na", body
    lab.group.wait_state(body["request_id"], "Running")
    lab.group.nf("stop", body["request_id"], "--yes")


def test_only_the_tenants_own_keys_sign_for_it(lab):
    path, _ = lab.sign("demo", "other")
    answer = lab.group.call("POST", "/consents", {"tenant_id": "demo", "statement": path.read_text()})
    assert (answer.status_code, answer.json()["reason"]) == (422, "SignatureInvalid"), answer.text
    path, _ = lab.sign("demo", "demo")
    answer = lab.group.call("POST", "/consents", {"tenant_id": "other", "statement": path.read_text()})
    assert (answer.status_code, answer.json()["reason"]) == (422, "SignatureInvalid"), answer.text
    for text in ("", "{}", "x" * 5000, path.read_text().replace("e", "f", 1)):
        answer = lab.group.call("POST", "/consents", {"tenant_id": "demo", "statement": text})
        assert answer.status_code in (400, 422), f"{text[:20]}: {answer.text}"
    path, _ = lab.sign("demo", "demo", ttl="1ms")
    answer = lab.group.call("POST", "/consents", {"tenant_id": "demo", "statement": path.read_text()})
    assert (answer.status_code, answer.json()["field"]) == (400, "expires_at"), answer.text
    assert ask(lab)[0] == 403


def test_a_revocation_stops_it_and_removes_every_copy(lab):
    path, statement = lab.sign("demo", "demo", "--model", "m")
    granted = lab.group.nf_json("consent", "grant", str(path), "--tenant", "demo")
    assert granted["active"] and granted["statement"] == statement, granted
    before = cached(lab.folder / "member")
    code, body = ask(lab, node="node-1")
    assert code == 201 and body["policies"]["P1"] == "pass", body
    lab.group.wait_state(body["request_id"], "Running")
    assert len(cached(lab.folder / "member")) > len(before)
    assert [(copy["node"], copy["purging"]) for copy in copies(lab)] == [("node-1", False)]

    lab.group.nf("consent", "revoke", statement, "--tenant", "demo", "--yes")
    assert ask(lab)[1]["reason"] == "ConsentRequired"
    job = nf.eventually(
        "the job waits, and says for what",
        lambda: (j := lab.group.job(body["request_id"]))["state"] == "Pending" and j,
        40,
    )
    assert job["reasons"][0]["reason"] == "ConsentRevoked", job["reasons"]
    nf.eventually("every copy is gone, and its node has said so", lambda: copies(lab) == [], 40)
    left = [path for path in cached(lab.folder / "member") if b"lovelace" in path.read_bytes()]
    assert left == [], left
    again = lab.group.call("POST", "/consents", {"tenant_id": "demo", "statement": path.read_text()})
    assert (again.status_code, again.json()["reason"]) == (403, "ConsentRevoked"), again.text

    path, _ = lab.sign("demo", "demo", "--model", "m", "--model-version", "v1")
    second = lab.group.nf_json("consent", "grant", str(path), "--tenant", "demo")
    lab.group.wait_state(body["request_id"], "Running", limit=40)
    lab.group.nf("stop", body["request_id"], "--yes")
    lab.group.nf("consent", "revoke", second["statement"], "--tenant", "demo", "--yes")
    nf.eventually("and gone once more", lambda: copies(lab) == [], 40)


def test_a_node_that_was_away_removes_its_copies_when_it_is_back(lab):
    path, statement = lab.sign("demo", "demo")
    lab.group.nf("consent", "grant", str(path), "--tenant", "demo")
    with lab.worker(lab.group):
        nf.eventually(
            "the worker is there",
            lambda: any(n["node_id"] == "w1" and n["state"] == "Ready" for n in lab.group.get("/nodes")["items"]),
            40,
        )
        code, body = ask(lab, node="w1")
        assert code == 201, body
        lab.group.wait_state(body["request_id"], "Running", limit=40)
        data = lab.folder / "worker/data"
        assert any(b"lovelace" in path.read_bytes() for path in cached(data))
    lab.group.nf("consent", "revoke", statement, "--tenant", "demo", "--yes")
    assert [(copy["node"], copy["purging"]) for copy in copies(lab)] == [("w1", True)]
    listed = lab.group.nf("consent", "list", "--tenant", "demo")
    assert "node w1 has to remove m@v1 of demo" in listed, listed
    with lab.worker(lab.group):
        nf.eventually("it removes them, and says so", lambda: copies(lab) == [], 60)
        assert not any(b"lovelace" in path.read_bytes() for path in cached(data))


def test_the_trail_says_who_let_what_be_kept(lab):
    lines = lab.group.nf("audit", "export").splitlines()
    entries = [json.loads(line).get("entry", {}) for line in lines]
    done = {entry["action"] for entry in entries if entry.get("result") == "done"}
    assert {"ConsentGrant", "ConsentRevoke", "CopyPurge"} <= done, done
