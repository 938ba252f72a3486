"""What strangers write never becomes a line of the log: each is one JSON object, and says what we say."""

import contextlib
import json
import socket

import nf

FORGED = 'x\r\n{"level":"ERROR","fields":{"message":"forged"}}\n'


def test_nobody_forges_a_line(tmp_path):
    with nf.Serve(tmp_path / "member", {"NF_LOG": "debug,neural_fabric=trace"}) as member:
        job = {"request_id": "r1", "tenant_id": "t1", "model_id": "m1", "model_version": "v1", "resources": {"gpu": 1}}
        for field in ["request_id", "tenant_id", "model_id", "model_version"]:
            answer = member.call("POST", "/schedule", {**job, field: FORGED})
            assert answer.status_code == 400 and answer.json()["field"] == field, answer.text
        member.call("POST", "/schedule", {**job, FORGED: 1})
        cordon = {"reason": FORGED}
        assert member.call("POST", "/node/node-1/cordon", cordon).status_code == 400
        encoded = "".join(f"%{byte:02X}" for byte in FORGED.encode())
        for path in [f"/schedule/{encoded}", f"/{encoded}", f"/schedule?tenant_id={encoded}"]:
            assert member.call("GET", path).status_code in (400, 404), path
        # No client would send these; a peer that is not HTTP may say anything.
        for raw in [f"GET / HTTP/1.1\r\nHost: x\r\nUser-Agent: a\n{FORGED}\r\n\r\n", FORGED * 3]:
            with socket.create_connection(("127.0.0.1", int(member.url().rsplit(":", 1)[1])), timeout=10) as stream:
                stream.sendall(raw.encode())
                # It may be let go at any byte.
                with contextlib.suppress(OSError):
                    stream.shutdown(socket.SHUT_WR)
                    while stream.recv(4096):
                        pass
        assert member.call("GET", "/health").status_code == 200
    lines = [line for line in member.output.split("\n") if line]
    told = [json.loads(line) for line in lines]
    assert all(line["timestamp"] and line["target"] for line in told), "each has been made here"
    assert not [line for line in told if line["fields"].get("message") == "forged"]
    assert [line for line in told if "forged" in json.dumps(line)], "it is told, as what somebody else said"
