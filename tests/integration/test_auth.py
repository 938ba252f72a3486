"""Tokens as people have them: made with the group, told once, sent by the commands, revoked."""

import functools
import http.server
import json
import os
import ssl
import subprocess
import sys
import threading

import nf
import requests


def run(env, *args, code=0):
    done = subprocess.run([str(nf.NF), *args], env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == code, f"nf {' '.join(args)}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout, done.stderr


def test_a_group_asks_who_calls_from_its_first_start(tmp_path):
    port, lab = nf.free_port(), tmp_path / "lab"
    made = nf.Process(
        tmp_path / "made",
        ["cluster", "init", "--dir", str(lab), "--members", f"node-1=127.0.0.1:{port + 1}", "-o", "json"],
    )
    assert made.wait(30) == 0, made.output
    told = made.output
    admin = json.loads(told[told.index("{") : told.rindex("}") + 1])["admin_token"]
    kept = [path for path in lab.rglob("*") if path.is_file() and admin.encode() in path.read_bytes()]
    assert not kept, f"the token is told once and kept nowhere: {kept}"
    with nf.Process(tmp_path / "serve", ["serve", "--config", str(lab / "node-1/nf.toml")]) as member:
        env = {**member.environment, "NF_ADDR": f"http://127.0.0.1:{port}"}
        with_token = {**env, "NF_TOKEN": admin}

        def nodes():
            done = subprocess.run([str(nf.NF), "get", "nodes", "-o", "json"], env=with_token, capture_output=True, text=True)
            return done.returncode == 0 and json.loads(done.stdout)["items"]

        nf.eventually("the member's node is there", nodes, 40)
        _, err = run(env, "get", "nodes", code=6)
        assert "Unauthenticated" in err and "nf token create" in err, err
        _, err = run(with_token, "run", "m1", "--tenant", "demo", "--gpus", "1", code=6)
        assert "Forbidden" in err and "operator" in err, err
        make = ["token", "create", "--keys", str(lab / "tokens"), "--subject", "ada", "--tenant", "demo", "--role", "operator"]
        ada = json.loads(run(env, *make, "-o", "json")[0])
        as_ada = {**env, "NF_TOKEN": ada["token"]}
        job = json.loads(run(as_ada, "run", "m1", "--tenant", "demo", "--gpus", "1", "-o", "json")[0])
        assert job["state"] != "Failed", job
        _, err = run(as_ada, "run", "m1", "--tenant", "other", "--gpus", "1", code=4)
        assert "no tenant other" in err, err
        export = tmp_path / "export.jsonl"
        run(with_token, "audit", "export", "--out", str(export))
        assert "holds" in run(env, "audit", "verify", str(export))[0]
        script = nf.ROOT / "docs/examples/audit_verify.py"
        check = [sys.executable, str(script), str(export)]
        assert subprocess.run(check, capture_output=True, check=False).returncode == 0
        lines = export.read_text().splitlines(keepends=True)
        entries = [json.loads(line)["entry"] for line in lines[:-1]]
        of_ada = [e for e in entries if e["actor"]["sub"] == "ada" and e["action"] == "JobSchedule"]
        assert len(of_ada) == 1 and of_ada[0]["object"] == f"job/demo/{job['request_id']}", entries
        export.write_text("".join(lines[:1] + lines[2:]))
        _, err = run(env, "audit", "verify", str(export), code=1)
        assert "seq 2" in err, err
        assert subprocess.run(check, capture_output=True, check=False).returncode != 0
        _, err = run(as_ada, "audit", "export", code=6)
        assert "Forbidden" in err, err
        run(with_token, "token", "revoke", ada["id"])
        _, err = run(as_ada, "get", "jobs", code=6)
        assert "Unauthenticated" in err, err
        assert admin not in member.output and ada["token"] not in member.output, "no token in any log"


def test_a_certificate_of_a_node_is_made_by_the_authority(tmp_path):
    env = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    ca = tmp_path / "ca"
    run(env, "tls", "ca", "create", "--dir", str(ca), "--cluster", "lab")
    run(env, "tls", "ca", "create", "--dir", str(ca), "--cluster", "lab", code=5)
    make = ["tls", "cert", "create", "--ca", str(ca), "--cluster", "lab", "--name", "gpu-7", "--dir", str(tmp_path / "tls")]
    out, _ = run(env, *make, "--role", "node", "-o", "json")
    assert json.loads(out)["name"] == "gpu-7.client.lab.nf"
    assert (tmp_path / "tls/member.key").stat().st_mode & 0o777 == 0o600
    verify = ["openssl", "verify", "-CAfile", str(ca / "ca.pem"), str(tmp_path / "tls/member.pem")]
    assert subprocess.run(verify, capture_output=True, check=False).returncode == 0
    run(env, *make, "--role", "node", code=5)
    named = ["../x" if word == "gpu-7" else word for word in make[:-1]]
    _, err = run(env, *named, str(tmp_path / "bad"), "--role", "node", code=2)
    assert "../x" in err, err


def issuer_over_tls(folder):
    """Serves `folder` on a port of this machine, with a certificate of its own; its URL and the certificate."""
    pem, key = folder / "server.pem", folder / "server.key"
    make = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "1"]
    # A server's own certificate and no authority: openssl's usual settings would make it one.
    plain = folder / "plain.cnf"
    plain.write_text("[req]\ndistinguished_name=dn\nx509_extensions=ext\n[dn]\n[ext]\nsubjectAltName=DNS:localhost\n")
    named = ["-config", str(plain), "-subj", "/CN=localhost", "-keyout", str(key), "-out", str(pem)]
    subprocess.run([*make, *named], check=True, capture_output=True)
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder / "public"))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server, f"https://localhost:{server.server_port}/jwks.json", pem


def test_token_keys_come_from_an_issuer_whose_authority_is_pinned(tmp_path):
    lab, public = tmp_path / "lab", tmp_path / "public"
    made = nf.Process(tmp_path / "made", ["cluster", "init", "--dir", str(lab), "--members", "node-1=127.0.0.1:1"])
    assert made.wait(30) == 0, made.output
    public.mkdir()
    (public / "jwks.json").write_bytes((lab / "tokens/jwks.json").read_bytes())
    server, url, pem = issuer_over_tls(tmp_path)
    env = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    make = ["token", "create", "--keys", str(lab / "tokens"), "--subject", "root", "--tenant", "ops", "--role", "admin"]
    token = {"Authorization": f"Bearer {run(env, *make)[0].strip()}"}
    port = nf.free_port()
    settings = {"NF_JWKS": url, "NF_JWKS_CA": pem, "SCHEDULER_PORT": port, "NF_DATA_DIR": tmp_path / "data"}
    nodes = f"http://127.0.0.1:{port}/nodes"
    with nf.Process(tmp_path / "serve", ["serve"], settings):

        def code(headers):
            return nf.requests.get(nodes, headers=headers, timeout=5).status_code

        nf.eventually("the issuer's keys count", lambda: code(token) == 200, 40)
        assert code({}) == 401
        health = nf.requests.get(f"http://127.0.0.1:{port}/health", timeout=5).json()
        assert health["components"]["keys"]["status"] == "ok", health
    server.shutdown()
    for wrong in ({"NF_JWKS": url}, {"NF_JWKS": "http://issuer.example/jwks.json"}, {"NF_JWKS": url, "NF_JWKS_CA": "/absent"}):
        name = f"refused-{len(str(wrong))}"
        refused = nf.Process(tmp_path / name, ["serve"], {**wrong, "SCHEDULER_PORT": port, "NF_DATA_DIR": tmp_path / "no"})
        assert refused.wait(30) == 2, refused.output
        assert "NF_JWKS" in refused.output.splitlines()[-1], refused.output


def test_no_planted_secret_is_in_a_log_at_trace_level(tmp_path):
    port, lab = nf.free_port(), tmp_path / "lab"
    made = nf.Process(tmp_path / "made", ["cluster", "init", "--dir", str(lab), "--members", f"node-1=127.0.0.1:{port + 1}"])
    assert made.wait(30) == 0, made.output
    vault = {"VAULT_ADDR": "http://127.0.0.1:1", "VAULT_TOKEN": "hvs.canary-of-vault"}
    store = {"MODEL_STORE_URL": f"file://{tmp_path}/store"}
    (tmp_path / "store").mkdir()
    settings = {"NF_LOG": "trace", "NEURAL_FABRIC_MODE": "simulation", **vault, **store}
    with nf.Process(tmp_path / "serve", ["serve", "--config", str(lab / "node-1/nf.toml")], settings) as member:
        env = {**member.environment, "NF_ADDR": f"http://127.0.0.1:{port}"}
        make = ["token", "create", "--keys", str(lab / "tokens"), "--subject", "canary", "--tenant", "demo"]
        token = run(env, *make, "--role", "operator", "--role", "admin")[0].strip()
        trusted = {**env, "NF_TOKEN": token}

        def runs():
            args = [str(nf.NF), "run", "m1", "--tenant", "demo"]
            done = subprocess.run(args, env=trusted, capture_output=True, text=True, check=False)
            assert done.returncode in (0, 3), f"{done.returncode} {done.stderr[-500:]}"
            return True

        nf.eventually("the member takes a job", runs, 40)
        shown = {"Authorization": "Bearer canary-of-nobody", "X-Vault-Token": "hvs.canary-of-a-caller"}
        address = f"http://127.0.0.1:{port}/schedule?token=canary-of-an-address"
        assert requests.get(address, headers=shown, timeout=10).status_code == 401
        key = (lab / "node-1/tls/member.key").read_text()
        nf.eventually("it logs all that it can", lambda: '"DEBUG"' in member.output, 20)
        text = member.output
        secrets = [token, token.rsplit(".", 1)[1], "canary-of", key.splitlines()[1]]
        found = [(secret, line) for secret in secrets for line in text.splitlines() if secret in line]
        assert not found, found[:3]
