"""Machines that join with a token: once, into the right group, with a key of their own, for as long as they are renewed."""

import json
import os
import subprocess
import time

import pytest
import requests
from cryptography import x509

import nf

LIFE = 20  # seconds that a worker's certificate counts here


def told(output):
    return json.loads(output[output.index("{") : output.rindex("}") + 1])


class Lab:
    """A group of one that asks who calls, and its admin."""

    def __init__(self, folder, cluster="lab"):
        self.folder, self.dir = folder, folder / "lab"
        self.port = nf.free_port()
        self.peer = f"127.0.0.1:{self.port + 1}"
        made = nf.Process(folder / "made", ["cluster", "init", "--dir", str(self.dir), "--cluster", cluster,
                                            "--members", f"node-1={self.peer}", "-o", "json"])
        assert made.wait(30) == 0, made.output
        self.admin = told(made.output)["admin_token"]
        self.member = None

    def start(self):
        settings = {"NF_NODE_CERT_LIFE": f"{LIFE}s", "NF_LOG": "debug"}
        self.member = nf.Process(self.folder / "member", ["serve", "--config", str(self.dir / "node-1/nf.toml")], settings)
        nf.eventually("the member's node is there", lambda: "node-1" in self.nodes(), 40)

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.member.stop()

    def call(self, method, path, token=None, **options):
        headers = {"authorization": f"Bearer {token or self.admin}"}
        return requests.request(method, f"http://127.0.0.1:{self.port}{path}", headers=headers, timeout=10, **options)

    def nodes(self):
        answer = self.call("GET", "/nodes")
        return {node["node_id"]: node for node in answer.json()["items"]} if answer.status_code == 200 else {}

    def nf(self, *args, code=0):
        env = {**self.member.environment, "NF_ADDR": f"http://127.0.0.1:{self.port}", "NF_TOKEN": self.admin}
        done = subprocess.run([str(nf.NF), *args], env=env, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == code, f"nf {' '.join(args)}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout + (done.stderr if code else "")

    def token(self, *args):
        return told(self.nf("join-token", "create", *args, "-o", "json"))

    def audit(self, *actions):
        out = self.folder / "export.jsonl"
        out.unlink(missing_ok=True)
        self.nf("audit", "export", "--out", str(out))
        entries = [json.loads(line).get("entry") for line in out.read_text().splitlines()]
        return [entry for entry in entries if entry and entry["action"] in actions]


def join(folder, token, to, name, code=0):
    """As on a machine that has nothing else: no address of an API, no other token, no file of the group."""
    dir = folder / name
    done = nf.Process(folder / f"joining-{name}", ["cluster", "join", "--to", to, "--name", name, "--dir", str(dir)],
                      {"NF_JOIN_TOKEN": token})
    assert done.wait(40) == code, done.output
    return dir, done.output


def certificate(dir):
    return x509.load_pem_x509_certificate((dir / "tls/member.pem").read_bytes())


def secret_of(token):
    return token.split(".")[2]


@pytest.fixture
def lab(tmp_path):
    with Lab(tmp_path / "blue") as lab:
        yield lab


def test_a_worker_joins_with_an_address_and_a_token_and_stays(lab, tmp_path):
    made = lab.token()
    token = made["token"]
    assert made["members"] == [lab.peer] and made["used_by"] is None, made
    dir, _ = join(tmp_path, token, lab.peer, "gpu-7")
    first = certificate(dir)
    assert first.extensions.get_extension_for_class(x509.SubjectAlternativeName).value.get_values_for_type(
        x509.DNSName) == ["gpu-7.client.lab.nf"]
    assert 0 < (first.not_valid_after_utc - first.not_valid_before_utc).total_seconds() <= LIFE + LIFE / 10
    key = dir / "tls/member.key"
    assert key.stat().st_mode & 0o077 == 0
    body = "".join(key.read_text().splitlines()[1:-1]).encode()
    there = [path for path in lab.folder.rglob("*") if path.is_file()]
    assert there and not [path for path in there if body[40:80] in path.read_bytes()], "the key stays on its machine"

    own = nf.free_port()
    settings = {"SCHEDULER_PORT": own, "NF_PORT_RANGE": "17600-17699", "NF_LOG": "debug"}
    with nf.Process(tmp_path / "worker", ["serve", "--config", str(dir / "nf.toml")], settings) as worker:
        nf.eventually("the group has the worker", lambda: lab.nodes()["gpu-7"]["state"] == "Ready", 30)
        make = ["token", "create", "--keys", str(lab.dir / "tokens"), "--subject", "ada", "--tenant", "demo", "--role", "operator"]
        ada = told(lab.nf(*make, "-o", "json"))["token"]
        body = {"request_id": "on-gpu-7", "tenant_id": "demo", "model_id": "m1", "model_version": "v1",
                "resources": {"gpu": 1}, "constraints": {"node": "gpu-7"}}
        answer = lab.call("POST", "/schedule", ada, json=body)
        assert answer.status_code == 201, answer.text
        nf.eventually("it runs there", lambda: lab.call("GET", "/schedule/on-gpu-7", ada).json()["state"] == "Running", 30)

        # Once is once: for another machine, and for the same name.
        for name in ["gpu-8", "gpu-7"]:
            _, said = join(tmp_path / "again", token, lab.peer, name, code=6)
            assert "JoinTokenInvalid" in said, said
        listed = told(lab.nf("join-token", "list", "-o", "json"))["items"]
        assert [(row["id"], row["used_by"]) for row in listed] == [(made["id"], "gpu-7")], listed

        renewed = nf.eventually("it is renewed", lambda: (found := certificate(dir)) != first and found, LIFE + 5)
        assert renewed.not_valid_after_utc > first.not_valid_after_utc
        assert renewed.public_key() == first.public_key()
        nf.eventually("the first one has run out", lambda: time.time() > first.not_valid_after_utc.timestamp() + 1, LIFE)
        nf.holds("its next connection comes with the new one", lambda: lab.nodes()["gpu-7"]["state"] == "Ready", 4)
        # A member that starts anew asks anew.
        lab.member.stop()
        lab.start()
        nf.eventually("the worker is there again", lambda: lab.nodes()["gpu-7"]["state"] == "Ready", 20)
        nf.holds("it stays", lambda: lab.nodes()["gpu-7"]["state"] == "Ready", 8)
        assert worker.child.poll() is None and "certificate, key and authorities replaced" in worker.output

    made_by, issued = lab.audit("JoinTokenCreate"), lab.audit("CertificateIssue")
    assert [e["actor"]["sub"] for e in made_by] == ["admin"] and made_by[0]["object"] == f"join-token/{made['id']}"
    assert {e["object"] for e in issued} == {"node/gpu-7"}, issued
    assert issued[0]["actor"]["sub"] == f"join-token/{made['id']}"
    assert len(issued) >= 2 and {e["actor"]["sub"] for e in issued[1:]} == {"node/gpu-7"}, issued
    logs = lab.member.output + worker.output
    assert secret_of(token) not in logs and not [
        path for path in lab.folder.rglob("*") if path.is_file() and secret_of(token).encode() in path.read_bytes()
    ], "the secret is kept nowhere"


def test_another_group_is_told_nothing(lab, tmp_path):
    token = lab.token()["token"]
    with Lab(tmp_path / "red") as red:
        dir, said = join(tmp_path, token, red.peer, "gpu-7", code=6)
        assert "nothing was sent" in said, said
        assert "join token" not in red.member.output and secret_of(token) not in red.member.output
    assert not (dir / "tls/member.key").exists()
    assert told(lab.nf("join-token", "list", "-o", "json"))["items"][0]["used_by"] is None
    join(tmp_path, token, lab.peer, "gpu-7")


def test_tokens_end_are_taken_back_and_make_nobody_else(lab, tmp_path):
    bound = lab.token("--node", "gpu-1")
    _, said = join(tmp_path, bound["token"], lab.peer, "gpu-2", code=6)
    assert "NodeIdentityMismatch" in said and "gpu-1" in said, said
    for name in ["node-1", "player"]:
        _, said = join(tmp_path, lab.token()["token"], lab.peer, name, code=6)
        assert "NodeIdentityMismatch" in said, said
    assert "NodeIdentityMismatch" in lab.nf("join-token", "create", "--node", "node-1", code=6)
    taken = lab.token()
    assert "counts no more" in lab.nf("join-token", "revoke", taken["id"])
    short = lab.token("--ttl", "1s")
    nf.eventually("its time is over", lambda: expired(lab, short["id"]), 10)
    made_up = ".".join(["nfj1", "0" * 32, secret_of(bound["token"]), bound["token"].split(".")[3]])
    for token in [taken["token"], short["token"], made_up]:
        begun = time.monotonic()
        _, said = join(tmp_path, token, lab.peer, "gpu-3", code=6)
        assert "JoinTokenInvalid" in said, said
        assert time.monotonic() - begun > 1, "nobody tries many"
    for wrong in ["25h", "0"]:
        lab.nf("join-token", "create", "--ttl", wrong, code=2)
    viewer = ["token", "create", "--keys", str(lab.dir / "tokens"), "--subject", "eve", "--tenant", "demo", "--role", "operator"]
    eve = told(lab.nf(*viewer, "-o", "json"))["token"]
    body = {"id": "0" * 32, "secret_sha256": "0" * 64}
    assert lab.call("POST", "/join-tokens", eve, json=body).status_code == 403
    assert lab.call("GET", "/join-tokens", eve).status_code == 403
    assert {e["object"] for e in lab.audit("JoinTokenRevoke")} == {f"join-token/{taken['id']}"}
    join(tmp_path, bound["token"], lab.peer, "gpu-1")


def expired(lab, id):
    row = [row for row in told(lab.nf("join-token", "list", "-o", "json"))["items"] if row["id"] == id]
    # It is forgotten by the next entry after its time; until then it is listed, and counts for nothing.
    from datetime import datetime, timezone

    return not row or datetime.fromisoformat(row[0]["expires_at"].replace("Z", "+00:00")) < datetime.now(timezone.utc)


def test_a_member_without_an_issuer_says_so_and_uses_nothing_up(lab, tmp_path):
    keys = lab.dir / "node-1/tls"
    os.rename(keys / "issuer.key", keys / "issuer.away")
    token = lab.token()["token"]
    _, said = join(tmp_path, token, lab.peer, "gpu-7", code=2)
    assert "NotSupported" in said and "--role issuer" in said, said
    # One of another authority, as when authorities were replaced and this was forgotten.
    other = Lab(tmp_path / "other").dir / "node-1/tls"
    for file in ["issuer.pem", "issuer.key"]:
        (keys / file).write_bytes((other / file).read_bytes())
    _, said = join(tmp_path, token, lab.peer, "gpu-7", code=2)
    assert "NotSupported" in said and "don't fit" in said, said
    metrics = lab.call("GET", "/metrics").text
    assert 'nf_alarms{kind="issuer"} 1' in metrics, metrics
    for file in ["issuer.pem", "issuer.key"]:
        (keys / file).unlink()
    lab.nf("tls", "cert", "create", "--ca", str(lab.dir / "ca"), "--cluster", "lab", "--role", "issuer", "--dir", str(keys))
    join(tmp_path, token, lab.peer, "gpu-7")
    nf.eventually("it is well again", lambda: 'nf_alarms{kind="issuer"} 0' in lab.call("GET", "/metrics").text, 10)


def test_a_token_is_not_lost_with_the_answer(lab, tmp_path):
    """As when the disk is full, or the machine stops, after the group has let it in."""
    made = lab.token()
    blocked = tmp_path / "gpu-7/tls/ca.pem"
    blocked.mkdir(parents=True)
    dir, said = join(tmp_path, made["token"], lab.peer, "gpu-7", code=1)
    assert "ca.pem" in said, said
    listed = told(lab.nf("join-token", "list", "-o", "json"))["items"]
    assert [row["used_by"] for row in listed] == ["gpu-7"], listed
    key, heard = (dir / "tls/joining.key").read_bytes(), time.time()
    blocked.rmdir()
    time.sleep(3)
    join(tmp_path, made["token"], lab.peer, "gpu-7")
    assert certificate(dir).not_valid_after_utc.timestamp() <= heard + LIFE + 1, "it ends when the first one would have"
    assert (dir / "tls/member.key").read_bytes() == key and not (dir / "tls/joining.key").exists()
    _, said = join(tmp_path / "other", made["token"], lab.peer, "gpu-7", code=6)
    assert "JoinTokenInvalid" in said, said
    assert len(lab.audit("CertificateIssue")) == 1
