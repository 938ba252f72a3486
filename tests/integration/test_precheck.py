"""The precheck's words, rule and files, and the report's: with nothing there, and on a member that runs."""

import json
import os
import socket
import subprocess
import threading

import nf


def run(env, *args):
    kept = {k: v for k, v in os.environ.items() if k in ("PATH", "HOME")}
    done = subprocess.run(
        [str(nf.NF), *map(str, args)],
        env={**kept, **{k: str(v) for k, v in env.items()}},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def look(out, env, *args):
    code, said, err = run(env, "precheck", "--out", out, "-o", "json", *args)
    value = json.loads(said)
    assert json.loads((out / "H.2_precheck.json").read_text()) == value
    assert value["outcome"] in (out / "logs/H.2_precheck.log").read_text()
    return code, value["outcome"], {c["check"]: c["status"] for c in value["checks"]}, said + err


def test_the_words_and_the_rule(tmp_path):
    code, outcome, checks, _ = look(tmp_path / "none", {"GPU_NODES": "auto"})
    assert (code, outcome) == (0, "PROCEED_SIMULATION"), checks
    assert checks["postgres"] == checks["vault"] == checks["cosign_key"] == checks["prometheus"] == "MISSING"
    code, outcome, _, _ = look(tmp_path / "block", {"NEURAL_FABRIC_MODE": "production"})
    assert (code, outcome) == (1, "BLOCK")

    assert run({}, "model", "keygen", tmp_path / "keys")[0] == 0
    (tmp_path / "store").mkdir()
    there = {
        "COSIGN_KEY_PATH": tmp_path / "keys/signing.pub.pem",
        "MODEL_STORE_URL": f"file://{tmp_path}/store",
        "GPU_NODES": "n1:H100-80G:8,n2",
    }
    code, outcome, checks, _ = look(tmp_path / "there", {**there, "NEURAL_FABRIC_MODE": "production"})
    assert (code, outcome, checks["gpu_nodes"], checks["cosign_key"]) == (0, "PROCEED", "n1,n2", "OK")
    code, outcome, _, _ = look(tmp_path / "strict", {**there, "NEURAL_FABRIC_MODE": "production"}, "--strict")
    assert (code, outcome) == (1, "BLOCK")
    dead = {**there, "POSTGRES_DSN": "postgres://nf:canary-secret@127.0.0.1:1/nf"}
    code, outcome, checks, said = look(tmp_path / "dead", dead)
    assert (code, outcome, checks["postgres"]) == (0, "PROCEED_SIMULATION", "ERROR")
    assert "canary-secret" not in said + (tmp_path / "dead/logs/H.2_precheck.log").read_text()


def test_a_server_that_answers_as_postgres_does_is_reachable(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer():
            client, _ = server.accept()
            with client:
                assert client.recv(8) == b"\0\0\0\x08\x04\xd2\x16\x2f"
                client.sendall(b"N")

        thread = threading.Thread(target=answer)
        thread.start()
        dsn = f"postgres://nf@127.0.0.1:{server.getsockname()[1]}/nf"
        _, _, checks, _ = look(tmp_path / "pg", {"POSTGRES_DSN": dsn})
        thread.join()
    assert checks["postgres"] == "REACHABLE"


def test_the_report_of_a_member_that_simulates(tmp_path):
    with nf.Serve(tmp_path / "serve") as member:
        body = {"tenant_id": "t1", "model_id": "m1", "model_version": "v1", "resources": {"gpu": 1}}
        assert member.call("POST", "/schedule", body).status_code == 201
        out = tmp_path / "out"
        snapshot = json.loads(member.nf("report", "--out", str(out), "-o", "json"))
        assert json.loads((out / "PhaseH.2_Snapshot.json").read_text()) == snapshot
        assert snapshot["commit"] and snapshot["generated_at"] and len(snapshot["reports"]) == 8
        for name in snapshot["reports"]:
            assert (out / name).read_text().startswith("# "), name
        summary = (out / "PhaseH.2_final_summary.md").read_text()
        assert "| P2 | BLOCKED |" in summary and "| P3 | waived |" in summary, summary
        assert "set COSIGN_KEY_PATH" in summary and snapshot["audit"]["entries"] > 0, summary
        assert "m1" in (out / "H.2.1_scheduling.md").read_text()
