"""Nothing unsigned runs where keys are configured: at admission, and once more on the node."""

import base64
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

    def sign(tenant, version, out, halves=both):
        named = ["--tenant", tenant, "--model", "m", "--model-version", version]
        nf_alone("model", "sign", model, *named, *halves, "--out", folder / out)
        return folder / out

    settings = {"COSIGN_KEY_PATH": keys / "signing.pub.pem"}
    with nf.Serve(folder / "serve", settings) as group:

        def publish(version, signature=None, tenant=None):
            more = ["--signature", signature] if signature else []
            more += ["--tenant", tenant] if tenant else []
            store = f"file://{group.store}"
            nf_alone("model", "publish", model, "--model", "m", "--version", version, "--store", store, *more)

        group.keys, group.sign, group.publish = keys, sign, publish
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


def test_a_signature_is_for_one_tenant_and_version(lab):
    lab.publish("v1", lab.sign("demo", "v1", "v1.sig"), "demo")
    code, body = ask(lab, "demo", "v1")
    assert code == 201 and body["policies"]["P2"] == "pass", body
    lab.wait_state(body["request_id"], "Running")
    refused(lab, "other", "v1", "SignatureRequired")
    lab.publish("v1", lab.sign("demo", "v1", "v1.sig"), "other")
    refused(lab, "other", "v1", "SignatureBindingMismatch")
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


def test_a_cosign_signature_of_the_manifest_counts_for_every_tenant(lab, tmp_path):
    lab.publish("cosign")
    manifest = lab.store / "m/cosign/manifest.json"
    sign = ["openssl", "dgst", "-sha256", "-sign", str(lab.keys / "ecdsa-p256.key.pem"), str(manifest)]
    signature = tmp_path / "cosign.sig"
    signature.write_bytes(base64.b64encode(subprocess.run(sign, check=True, capture_output=True).stdout) + b"\n")
    lab.publish("cosign", signature)
    for tenant in ("demo", "other"):
        code, body = ask(lab, tenant, "cosign")
        assert code in (201, 202) and body["policies"]["P2"] == "pass", body


def test_the_node_looks_once_more_before_the_start(lab):
    lab.publish("later", lab.sign("late", "later", "later.sig"), "late")
    assert lab.call("PUT", "/tenants/late/quota", {"gpu": 0}).status_code == 200
    code, body = ask(lab, "late", "later")
    assert code == 202, body
    # Admitted on good evidence; by the time it gets its place the evidence is another.
    lab.publish("later", lab.sign("demo", "later", "wrong.sig"), "late")
    assert lab.call("PUT", "/tenants/late/quota", {"gpu": 1}).status_code == 200
    job = lab.wait_state(body["request_id"], "Failed")
    assert job["replicas"][0]["why"] == "SignatureBindingMismatch", job
    metrics = lab.call("GET", "/metrics").text
    assert 'nf_model_verify_failures_total{kind="signature"}' in metrics


def test_a_key_file_that_is_no_public_key_stops_the_start(lab, tmp_path):
    for what, bad in (("private", lab.keys / "ecdsa-p256.key.pem"), ("absent", tmp_path / "absent.pem")):
        settings = {"COSIGN_KEY_PATH": bad, "SCHEDULER_PORT": nf.free_port(), "NF_DATA_DIR": tmp_path / "data"}
        member = nf.Process(tmp_path / what, ["serve"], settings)
        assert member.wait(30) == 2, member.output
        said = [line for line in member.output.splitlines() if line.startswith("nf: ")]
        assert len(said) == 1 and "COSIGN_KEY_PATH" in said[0] and "BEGIN" not in said[0], member.output
