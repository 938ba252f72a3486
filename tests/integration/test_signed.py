"""Nothing unsigned runs where keys are configured: at admission, and once more on the node."""

import base64
import json
import shutil
import subprocess

import nf
import pytest


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """Keys, a model, its signatures, and a member that asks for them."""
    folder = tmp_path_factory.mktemp("signed")
    keys, model = folder / "keys", folder / "m"
    model.mkdir()
    (model / "weights.onnx").write_bytes(b"weights" * 100)

    def nf_alone(*args):
        done = subprocess.run([str(nf.NF), *map(str, args)], capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, f"{args}: {done.stderr}"

    nf_alone("model", "keygen", keys)
    both = ["--key", keys / "ecdsa-p256.key.pem", "--key", keys / "ml-dsa-65.key.pem"]

    data = nf.ROOT / "tests/data/signing"

    def publish(version, signature=None, tenant=None, files=model, name="m", budget=()):
        more = [*budget, *(["--signature", signature] if signature else [])]
        more += ["--tenant", tenant] if tenant else []
        named = ["--model", name, "--version", version, "--store", f"file://{group.store}"]
        nf_alone("model", "publish", files, *named, *more)

    def sign(tenant, version, out, halves=both, early=False, least=None, published=False):
        """Publishes the version and signs what the store then has; `early`: the files alone, as before there is one."""
        if not published:
            publish(version)
        bound = [] if early else ["--store", f"file://{group.store}"]
        bound += ["--min-version", least] if least else []
        named = ["--tenant", tenant, "--model", "m", "--model-version", version]
        nf_alone("model", "sign", model, *named, *halves, *bound, "--out", folder / out)
        return folder / out

    def key(name):
        """A key of somebody else's tool."""
        make = ["openssl", "genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", folder / name]
        subprocess.run([str(arg) for arg in make], check=True, capture_output=True)
        public = ["openssl", "pkey", "-in", folder / name, "-pubout"]
        return subprocess.run([str(arg) for arg in public], check=True, capture_output=True).stdout.decode()

    tenants = folder / "tenants"
    tenants.mkdir()
    both_halves = (keys / "signing.pub.pem").read_text()
    (tenants / "_all.pem").write_text(key("everybodys.key"))
    # One of the group's halves is a tenant's, too: it still signs nothing alone.
    half = both_halves[: both_halves.index("-----BEGIN", 10)]
    (tenants / "demo.pem").write_text(key("demos.key") + (data / "p256.pub.pem").read_text() + half)
    shutil.copy(data / "root.pem", tenants / "demo.roots.pem")
    settings = {"COSIGN_KEY_PATH": keys / "signing.pub.pem", "NF_TENANT_KEYS": tenants}
    with nf.Serve(folder / "serve", settings) as group:
        group.keys, group.sign, group.publish, group.data = keys, sign, publish, data
        group.detached = folder
        yield group


def ask(group, tenant, version, **more):
    body = {"tenant_id": tenant, "model_id": "m", "model_version": version, "resources": {"gpu": 1}, **more}
    answer = group.call("POST", "/schedule", body)
    return answer.status_code, answer.json()


def refused(group, tenant, version, reason):
    code, body = ask(group, tenant, version)
    assert (code, body["reason"], body["field"]) == (422, reason, body["field"]), body


def test_a_version_without_a_signature_is_refused(lab):
    lab.publish("bare")
    refused(lab, "demo", "bare", "SignatureRequired")
    out = lab.nf("run", "m@bare", "--tenant", "demo", "--gpus", "1", code=6)
    assert out == ""


def test_what_was_stopped_is_in_the_answer_the_trail_and_the_report(lab, tmp_path):
    lab.publish("stopped")
    code, body = ask(lab, "demo", "stopped")
    assert (code, body["policies"]["P2"], body["policies"]["P4"]) == (422, "block", "pass"), body

    def entries(of):
        lines = lab.call("GET", "/audit?per_page=10000").text.splitlines()
        told = [json.loads(line).get("entry", {}) for line in lines]
        return [entry for entry in told if entry.get("object") == of]

    entry = nf.eventually("it is in the trail", lambda: entries("model/demo/m@stopped"))[0]
    assert entry["checks"]["P2"] == {"code": "SignatureRequired", "verdict": "block"}, entry
    assert (entry["action"], entry["result"]) == ("JobSchedule", "SignatureRequired")
    assert "manifest" in entry["refs"], entry
    lab.publish("kept", lab.sign("demo", "kept", "kept.sig"), "demo")
    code, body = ask(lab, "demo", "kept")
    assert code == 201, body
    lab.wait_state(body["request_id"], "Running")
    assert lab.job(body["request_id"])["policies"]["P7"] == "pass", "the node has hashed every byte"
    lab.nf("report", "--out", str(tmp_path / "reports"))
    summary = (tmp_path / "reports/PhaseH.2_final_summary.md").read_text()
    row = next(line for line in summary.splitlines() if line.startswith("| P2 |"))
    counts = dict(pair.split(" ") for pair in row.split("|")[-2].strip().split(", "))
    assert int(counts["block"]) > 0 and int(counts["pass"]) > 0, row
    deploys = [entry for entry in entries(f"job/demo/{body['request_id']}") if entry["action"] == "ModelDeploy"]
    assert [e["checks"]["P7"]["verdict"] for e in deploys] == ["pass"], deploys


def test_a_signature_is_for_one_tenant_and_version(lab):
    lab.publish("v1", lab.sign("demo", "v1", "v1.sig"), "demo")
    code, body = ask(lab, "demo", "v1")
    assert code == 201 and body["policies"]["P2"] == "pass", body
    lab.wait_state(body["request_id"], "Running")
    refused(lab, "other", "v1", "SignatureRequired")
    lab.publish("v1", lab.sign("demo", "v1", "v1.sig"), "other")
    refused(lab, "other", "v1", "SignatureBindingMismatch")
    lab.publish("v2")
    lab.publish("v2", lab.sign("demo", "v1", "v1.sig"), "demo")
    refused(lab, "demo", "v2", "SignatureBindingMismatch")


def test_both_halves_of_a_hybrid_signature_are_wanted(lab):
    half = ["--key", lab.keys / "ecdsa-p256.key.pem"]
    lab.publish("half", lab.sign("demo", "half", "half.sig", half), "demo")
    refused(lab, "demo", "half", "HybridSignatureIncomplete")


def test_a_stranger_signs_nothing(lab, tmp_path):
    subprocess.run([str(nf.NF), "model", "keygen", str(tmp_path / "other")], check=True, capture_output=True)
    other = [item for kind in ("ecdsa-p256", "ml-dsa-65") for item in ("--key", tmp_path / f"other/{kind}.key.pem")]
    lab.publish("eve", lab.sign("demo", "eve", "eve.sig", other), "demo")
    refused(lab, "demo", "eve", "SignatureInvalid")


def test_another_program_under_the_same_signature_is_refused(lab):
    """Whoever writes the store leaves each file as it was signed, and changes what is done with them."""
    lab.publish("shell", lab.sign("demo", "shell", "shell.sig"), "demo")
    path = lab.store / "m/shell/manifest.json"
    honest = json.loads(path.read_text())
    argv = ["/bin/sh", "-c", "echo mine"]
    rewritten = [
        {"runtime": {"kind": "process", "argv": argv, "ready": {"path": "/"}}},
        {"data_classes": ["weather"]},
        {"latency_ms": 1},
        {"format": "gguf"},
    ]
    path.chmod(0o644)
    for change in rewritten:
        path.write_text(json.dumps({**honest, **change}))
        code, body = ask(lab, "demo", "shell")
        assert (code, body["reason"]) == (422, "SignatureBindingMismatch"), (change, body)
    lab.publish("early", lab.sign("demo", "early", "early.sig", early=True), "demo")
    refused(lab, "demo", "early", "SignatureBindingMismatch")


def detached(group, key, version, name="m"):
    """As cosign sign-blob signs the manifest."""
    manifest = group.store / name / version / "manifest.json"
    sign = ["openssl", "dgst", "-sha256", "-sign", str(key), str(manifest)]
    path = group.detached / f"{version}.detached.sig"
    path.write_bytes(base64.b64encode(subprocess.run(sign, check=True, capture_output=True).stdout) + b"\n")
    return path


def admitted(group, tenant, version, **more):
    code, body = ask(group, tenant, version, **more)
    assert code in (201, 202) and body["policies"]["P2"] == "pass", body


def test_a_signature_that_names_no_tenant_counts_for_its_keys_tenants(lab):
    lab.publish("everybodys")
    lab.publish("everybodys", detached(lab, lab.detached / "everybodys.key", "everybodys"))
    admitted(lab, "demo", "everybodys")
    admitted(lab, "other", "everybodys")
    lab.publish("demos")
    # For all as far as the store goes: it is the key that is not.
    lab.publish("demos", detached(lab, lab.detached / "demos.key", "demos"))
    admitted(lab, "demo", "demos")
    refused(lab, "other", "demos", "SignatureInvalid")


def test_half_of_a_pair_signs_no_manifest_alone(lab):
    lab.publish("halfway")
    lab.publish("halfway", detached(lab, lab.keys / "ecdsa-p256.key.pem", "halfway"), "demo")
    refused(lab, "demo", "halfway", "HybridSignatureIncomplete")


@pytest.mark.parametrize("signature", ["model.p256.sig", "model.cert.sig"])
def test_model_signing_is_admitted_for_the_tenant_of_its_key_or_authority(lab, signature):
    version = signature.split(".")[1]
    lab.publish(version, lab.data / signature, files=lab.data / "model", name="model")
    admitted(lab, "demo", version, model_id="model")
    code, body = ask(lab, "other", version, model_id="model")
    assert (code, body["reason"]) == (422, "SignatureInvalid"), body
    # Under another name it is another model.
    lab.publish(version, lab.data / signature, files=lab.data / "model", name="renamed")
    code, body = ask(lab, "demo", version, model_id="renamed")
    assert (code, body["reason"]) == (422, "SignatureBindingMismatch"), body


def test_the_node_looks_once_more_before_the_start(lab):
    wrong = {"later": {"tenant": "demo"}, "sooner": {"tenant": "late", "early": True}}
    jobs = {}
    for version, how in wrong.items():
        lab.publish(version, lab.sign("late", version, f"{version}.sig"), "late")
        assert lab.call("PUT", "/tenants/late/quota", {"gpu": 0}).status_code == 200
        code, body = ask(lab, "late", version)
        assert code == 202, body
        # Admitted on good evidence; by the time it gets its place the evidence is another.
        lab.publish(version, lab.sign(version=version, out="wrong.sig", **how), "late")
        jobs[version] = body["request_id"]
    assert lab.call("PUT", "/tenants/late/quota", {"gpu": 2}).status_code == 200
    for request in jobs.values():
        job = lab.wait_state(request, "Failed")
        assert job["replicas"][0]["why"] == "SignatureBindingMismatch", job
    metrics = lab.call("GET", "/metrics").text
    assert 'nf_model_verify_failures_total{kind="signature"}' in metrics


def test_an_older_version_does_not_come_back(lab):
    """A tenant of its own: the floor would be in the others' way."""
    for version, least in (("v1.9", None), ("v1.10", "v1.10")):
        lab.publish(version, lab.sign("floor", version, f"{version}.sig", least=least), "floor")
    code, first = ask(lab, "floor", "v1.9")
    assert code == 201, first
    code, body = ask(lab, "floor", "v1.10")
    assert code in (201, 202), body
    code, body = ask(lab, "floor", "v1.9")
    assert (code, body["reason"], body["field"]) == (422, "VersionTooOld", "model_version"), body
    assert "v1.10" in body["detail"], body
    lab.wait_state(first["request_id"], "Running")


def test_a_versions_budget_is_held(lab):
    lab.publish("budget", budget=["--memory", "1GiB", "--latency-ms", "200"])
    lab.publish("budget", lab.sign("demo", "budget", "budget.sig", published=True), "demo",
                budget=["--memory", "1GiB", "--latency-ms", "200"])
    code, body = ask(lab, "demo", "budget", resources={"gpu": 1, "mem": "2GiB"})
    assert (code, body["reason"], body["field"]) == (422, "MemoryBudgetExceeded", "resources.mem"), body
    code, body = ask(lab, "demo", "budget", constraints={"latency_ms": 300})
    assert (code, body["reason"], body["field"]) == (422, "LatencyBudgetExceeded", "constraints.latency_ms"), body
    code, body = ask(lab, "demo", "budget", resources={"gpu": 1, "mem": "1GiB"}, constraints={"latency_ms": 200})
    assert code in (201, 202) and body["policies"]["P6"] == "pass", body
    code, body = ask(lab, "demo", "v1")
    assert body["policies"]["P6"] == "na", body


def test_a_key_file_that_is_no_public_key_stops_the_start(lab, tmp_path):
    for what, bad in (("private", lab.keys / "ecdsa-p256.key.pem"), ("absent", tmp_path / "absent.pem")):
        settings = {"COSIGN_KEY_PATH": bad, "SCHEDULER_PORT": nf.free_port(), "NF_DATA_DIR": tmp_path / "data"}
        member = nf.Process(tmp_path / what, ["serve"], settings)
        assert member.wait(30) == 2, member.output
        said = [line for line in member.output.splitlines() if line.startswith("nf: ")]
        assert len(said) == 1 and "COSIGN_KEY_PATH" in said[0] and "BEGIN" not in said[0], member.output
