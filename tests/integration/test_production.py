"""A production group: it starts, runs what was signed and approved by two people, and nothing else."""

import json
import subprocess
import sys

import nf
import pytest


class Lab(nf.Process):
    """One member in production, with the people who may ask it."""

    def __init__(self, folder):
        self.port, self.lab, self.store = nf.free_port(), folder / "lab", folder / "store"
        self.keys, self.model = folder / "keys", folder / "m"
        self.model.mkdir(parents=True)
        self.store.mkdir()
        (self.model / "weights.onnx").write_bytes(b"weights" * 100)
        made = nf.Process(
            folder / "made",
            ["cluster", "init", "--dir", str(self.lab), "--members", f"node-1=127.0.0.1:{self.port + 1}", "-o", "json"],
        )
        assert made.wait(30) == 0, made.output
        told = made.output
        admin = json.loads(told[told.index("{") : told.rindex("}") + 1])["admin_token"]
        self.key_ids = json.loads(self.alone("model", "keygen", self.keys, "-o", "json"))
        self.signers = folder / "signers.toml"
        self.owned_by("carl", "carl")
        settings = {
            "NEURAL_FABRIC_MODE": "production",
            "MODEL_STORE_URL": f"file://{self.store}",
            "COSIGN_KEY_PATH": self.keys / "signing.pub.pem",
            "NF_SIGNERS": self.signers,
            # No other user can pass through the folders of a test.
            "NF_REPLICA_USERS": "off",
        }
        super().__init__(folder / "serve", ["serve", "--config", str(self.lab / "node-1/nf.toml")], settings)
        self.people = {"admin": admin}
        for who, role in (("ada", "operator"), ("bob", "promoter"), ("both", None)):
            roles = ["--role", role] if role else ["--role", "operator", "--role", "promoter"]
            make = ["token", "create", "--keys", self.lab / "tokens", "--subject", who, "--tenant", "demo", *roles]
            self.people[who] = self.alone(*make).strip()

    def alone(self, *args):
        done = subprocess.run([str(nf.NF), *map(str, args)], capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, f"{args}: {done.stderr}"
        return done.stdout

    def nf(self, who, *args, code=0):
        env = {**self.environment, "NF_ADDR": f"http://127.0.0.1:{self.port}", "NF_TOKEN": self.people[who]}
        done = subprocess.run([str(nf.NF), *map(str, args)], env=env, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == code, f"{who}: nf {args}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout if code == 0 else done.stderr

    def run(self, who, version, code=0):
        """Asks for a job without devices: this machine has none, and production plays none."""
        return self.nf(who, "run", f"m@{version}", "--tenant", "demo", "--cpu", "0.1", "-o", "json", code=code)

    def owned_by(self, *people):
        """Whose the keys are that sign: one half is each person's."""
        ids = self.key_ids["key_ids"].values()
        entries = [f'[[signer]]\nsubject = "{who}"\nkeys = ["{key}"]\n' for who, key in zip(people, ids, strict=False)]
        self.signers.write_text("".join(entries))

    def publish(self, version, played=False):
        store, program = ["--store", f"file://{self.store}"], self.model.parent / "runtime.json"
        serve = ["{python}", "-m", "http.server", "{port}", "--bind", "{host}"]
        program.write_text(json.dumps({"argv": serve, "ready": {"path": "/"}}))
        runtime = ["--runtime", program] if played is False else []
        self.alone("model", "publish", self.model, "--model", "m", "--version", version, *store, *runtime)
        self.sign(version, *store)

    def sign(self, version, *more):
        both = ["--key", self.keys / "ecdsa-p256.key.pem", "--key", self.keys / "ml-dsa-65.key.pem"]
        named = ["--tenant", "demo", "--model", "m", "--model-version", version]
        self.alone("model", "sign", self.model, *named, *both, *more)

    def jobs(self):
        return json.loads(self.nf("ada", "get", "jobs", "-o", "json"))["items"]

    def stop_jobs(self):
        """Replicas outlive the process that started them; these must not outlive the test."""
        for job in self.jobs():
            self.nf("ada", "stop", job["request_id"], "--yes")
        nf.eventually("all have ended", lambda: not self.jobs(), 40)


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    with Lab(tmp_path_factory.mktemp("production")) as lab:

        def ready():
            assert lab.child.poll() is None, lab.output[-2000:]
            return json.loads(lab.nf("admin", "get", "nodes", "-o", "json"))["items"]

        nf.eventually("the member's node is there", ready, 40)
        yield lab
        lab.stop_jobs()


def test_it_says_that_nothing_is_simulated(lab):
    health = json.loads(lab.nf("admin", "get", "nodes", "-o", "json"))
    assert health["simulation"] is False and not any(node["simulated"] for node in health["items"]), health


def test_in_production_no_token_registers_a_node(lab):
    for who in ("admin", "ada"):
        answer = nf.requests.post(
            f"http://127.0.0.1:{lab.port}/node/register",
            headers={"Authorization": f"Bearer {lab.people[who]}"}, json={"node_id": "n9", "gpus": 8}, timeout=10,
        )
        told = (answer.status_code, answer.json()["reason"])
        assert told == ((403, "NodeIdentityMismatch") if who == "admin" else (403, "Forbidden")), answer.text
    assert "n9" not in lab.nf("admin", "get", "nodes")


def test_what_nobody_approved_does_not_run(lab):
    lab.publish("v1")
    assert "ApprovalRequired" in lab.run("ada", "v1", code=6)
    said = lab.nf("ada", "run", "m@v1", "--tenant", "demo", "--cpu", "0.1", "--approved-by", "bob", code=6)
    assert "ApprovalRequired" in said, said
    assert "Forbidden" in lab.nf("ada", "model", "approve", "m@v1", "--tenant", "demo", code=6)


def test_another_person_approves_and_then_it_runs(lab):
    lab.publish("v2")
    approved = json.loads(lab.nf("bob", "model", "approve", "m@v2", "--tenant", "demo", "-o", "json"))
    assert approved["approved_by"] == "bob" and approved["active"], approved
    job = json.loads(lab.run("ada", "v2"))
    told = json.loads(lab.nf("ada", "describe", "job", job["request_id"], "-o", "json"))
    assert told["approved_by"] == "bob" and told["policies"]["P3"] == "pass", told

    def running():
        return json.loads(lab.nf("ada", "describe", "job", job["request_id"], "-o", "json"))["state"] == "Running"

    nf.eventually("it runs for real", running, 40)
    trail = lab.nf("admin", "audit", "export").splitlines()
    entries = [json.loads(line).get("entry", {}) for line in trail]
    mine = [e for e in entries if e.get("action") == "JobSchedule" and e["result"] == "done"]
    assert mine and mine[-1]["checks"]["P3"]["verdict"] == "pass", mine
    assert mine[-1]["refs"]["approval"] == approved["digest"], mine


def test_what_would_only_be_played_does_not_run(lab):
    lab.publish("played", played=True)
    lab.nf("bob", "model", "approve", "m@played", "--tenant", "demo")
    assert "names no program" in lab.run("ada", "played", code=6)


def test_the_start_and_the_doctor_say_whose_keys_sign(lab):
    ids = lab.key_ids["key_ids"].values()
    env = {**lab.environment, "COSIGN_KEY_PATH": str(lab.keys / "signing.pub.pem"), "NF_SIGNERS": str(lab.signers)}
    ask = [str(nf.NF), "doctor", "-o", "json"]
    done = subprocess.run(ask, env=env, capture_output=True, text=True, timeout=60, check=False)
    found = [one["detail"] for one in json.loads(done.stdout)["items"] if one["check"] == "signers"]
    for told in (lab.output, *found):
        assert "carl of any issuer" in told and all(key in told for key in ids), told[-2000:]
    assert len(found) == 1, done.stdout


def test_who_signed_it_does_not_approve_it(lab):
    lab.publish("v8")
    lab.owned_by("ada", "bob")
    nf.eventually(
        "half of it is his", lambda: "ApprovalSelf" in lab.nf("bob", "model", "approve", "m@v8", "--tenant", "demo", code=6), 20
    )
    # Nobody stands for the publishers any more: two others do both, and either of them may ask for it.
    lab.nf("both", "model", "approve", "m@v8", "--tenant", "demo")
    lab.run("both", "v8")
    lab.owned_by("ada", "both")
    nf.eventually("the file is read anew", lambda: "signed it, too" in refused(lab, "v8"), 20)
    lab.owned_by("carl")
    unlisted = list(lab.key_ids["key_ids"].values())[1]
    told = nf.eventually("half of it is nobody's", lambda: "SignerUnknown" in (now := refused(lab, "v8")) and now, 20)
    assert unlisted in told, told
    assert "SignerUnknown" in lab.nf("both", "model", "approve", "m@v8", "--tenant", "demo", code=6)
    lab.owned_by("carl", "carl")
    nf.eventually("somebody else's", lambda: not refused(lab, "v8"), 20)


def refused(lab, version):
    env = {**lab.environment, "NF_ADDR": f"http://127.0.0.1:{lab.port}", "NF_TOKEN": lab.people["ada"]}
    ask = [str(nf.NF), "plan", f"m@{version}", "--tenant", "demo", "--cpu", "0.1"]
    return subprocess.run(ask, env=env, capture_output=True, text=True, timeout=60, check=False).stderr


def test_an_approval_ends_and_is_taken_back(lab):
    lab.publish("v4")
    lab.nf("bob", "model", "approve", "m@v4", "--tenant", "demo", "--ttl", "1s")
    nf.eventually("it has expired", lambda: "ApprovalExpired" in lab.run("ada", "v4", code=6), 20)
    lab.nf("bob", "model", "approve", "m@v4", "--tenant", "demo")
    assert "revoked" in lab.nf("bob", "model", "revoke", "m@v4", "--tenant", "demo")
    assert "ApprovalRequired" in lab.run("ada", "v4", code=6)


def test_a_revocation_stops_what_runs_and_a_new_approval_brings_it_back(lab):
    lab.publish("v6")
    lab.nf("bob", "model", "approve", "m@v6", "--tenant", "demo")
    job = json.loads(lab.run("ada", "v6"))["request_id"]

    def told(*states):
        job_now = json.loads(lab.nf("ada", "describe", "job", job, "-o", "json"))
        return job_now["state"] in states and job_now

    nf.eventually("it runs", lambda: told("Running"), 40)
    lab.nf("bob", "model", "revoke", "m@v6", "--tenant", "demo")
    waits = nf.eventually("it is stopped, and waits", lambda: told("Pending"), 40)
    assert waits["reasons"][0]["reason"] == "ApprovalRequired", waits["reasons"]
    lab.nf("bob", "model", "approve", "m@v6", "--tenant", "demo")
    nf.eventually("it is let in again", lambda: told("Running"), 40)


def test_a_bad_certificate_changes_nothing_and_is_told(lab):
    files = lab.lab / "node-1/tls/member.pem"
    good = files.read_bytes()

    def keys():
        return nf.requests.get(f"http://127.0.0.1:{lab.port}/health", timeout=5).json()["components"]["keys"]

    assert keys()["status"] == "ok"
    files.write_bytes(b"nonsense")
    told = nf.eventually("it is told", lambda: (now := keys())["status"] == "degraded" and now, 20)
    assert "certificate" in told["detail"] and str(lab.lab) not in told["detail"], "paths are for the log"
    metrics = nf.requests.get(
        f"http://127.0.0.1:{lab.port}/metrics", headers={"Authorization": f"Bearer {lab.people['admin']}"}, timeout=5
    ).text
    assert 'nf_alarms{kind="certificate"} 1' in metrics
    lab.nf("admin", "get", "nodes")
    files.write_bytes(good)
    nf.eventually("it is well again", lambda: keys()["status"] == "ok", 20)


def test_the_trail_is_signed_by_the_member(lab):
    export = lab.folder / "export.jsonl"
    lab.nf("admin", "audit", "export", "--out", export)
    ca = lab.lab / "ca/ca.pem"
    told = json.loads(lab.alone("audit", "verify", export, "--ca", ca, "-o", "json"))
    assert (told["signed_by"], told["signature"]) == ("node-1", "hybrid"), told
    script = nf.ROOT / "docs/examples/audit_verify.py"
    # Whether this Python can look at the ML-DSA half is asked in tests/it/audit_export.rs.
    check = [sys.executable, str(script), "--ecdsa-alone", str(export), str(ca)]
    done = subprocess.run(check, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "by member node-1, ECDSA" in done.stdout, done.stderr
    # A member of a group from before there were two halves: it goes on, and the operator gives it the other.
    keys = lab.lab / "node-1/tls"
    for file in ["notary.key", "notary.pem"]:
        (keys / file).unlink()
    lab.nf("admin", "audit", "export", "--out", export)
    verify = [str(nf.NF), "audit", "verify", str(export), "--ca", str(ca)]
    done = subprocess.run(verify, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "--role notary" in done.stderr, done.stderr
    done = subprocess.run([*verify, "--classical"], capture_output=True, text=True, check=False)
    assert done.returncode == 1, "an export's own end is signed now"
    kept = lab.folder / "kept.json"
    kept.write_text(export.read_text().splitlines()[-1])
    (lab.lab / "ca/ca-ml-dsa.key").unlink()
    ca.write_text(ca.read_text().split("-----BEGIN PUBLIC KEY")[0])
    assert json.loads(lab.alone("audit", "verify", export, "--ca", ca, "-o", "json"))["signature"] == "classical"
    cert = ["tls", "cert", "create", "--ca", lab.lab / "ca", "--role", "notary", "--name", "node-1", "--dir", keys]
    lab.alone(*cert)
    lab.nf("admin", "audit", "export", "--out", export)
    told = json.loads(lab.alone("audit", "verify", export, "--ca", ca, "-o", "json"))
    assert (told["signed_by"], told["signature"]) == ("node-1", "hybrid"), told
    verify = [str(nf.NF), "audit", "verify", str(export), "--ca", str(ca), "--checkpoint", str(kept)]
    done = subprocess.run(verify, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "--classical" in done.stderr, done.stderr
    told = json.loads(lab.alone(*verify[1:], "--classical", "-o", "json"))
    assert (told["signature"], told["classical"]) == ("hybrid", 1), told
    other = lab.folder / "other"
    lab.alone("tls", "ca", "create", "--dir", other, "--cluster", "other")
    verify = [str(nf.NF), "audit", "verify", str(export), "--ca", str(other / "ca.pem")]
    assert subprocess.run(verify, capture_output=True, check=False).returncode == 1


def test_another_program_needs_another_signature_whoever_approves_it(lab):
    lab.publish("v7")
    path = lab.store / "m/v7/manifest.json"
    path.write_text(path.read_text().replace("http.server", "http.serve_r"))
    lab.nf("bob", "model", "approve", "m@v7", "--tenant", "demo", "--store", f"file://{lab.store}")
    assert "SignatureBindingMismatch" in lab.run("ada", "v7", code=6)
    lab.sign("v7", "--out", lab.folder / "early.sig")
    kept = lab.store / ".signatures/m/v7/demo.sig"
    kept.write_bytes((lab.folder / "early.sig").read_bytes())
    assert "SignatureBindingMismatch" in lab.run("ada", "v7", code=6)


def test_other_bytes_under_the_same_name_need_another_approval(lab):
    lab.publish("v5")
    lab.nf("bob", "model", "approve", "m@v5", "--tenant", "demo", "--sha256", "0" * 64)
    assert "ApprovalMismatch" in lab.run("ada", "v5", code=6)
