"""A worker is cut off from the group by a proxy that goes silent. Its replicas serve on.
For thirty seconds nothing moves; for longer the replica is replaced once, and the old
one goes when the worker is back.
"""

import json
import socket
import threading

import requests
from nf import Process, Serve, eventually, free_port

# The shortest times that fit together: Down is 1.01 leases and a little.
TIMES = {"NF_SUSPECT_AFTER": "2s", "NF_UNKNOWN_AFTER": "5s", "NF_LEASE": "36s", "NF_DOWN_AFTER": "42s"}


class Wire:
    """Passes bytes on between a port and another, or, while it is cut, none at all."""

    def __init__(self, to):
        self.to, self.port = to, free_port()
        self.whole = threading.Event()
        self.whole.set()
        self.listener = socket.create_server(("127.0.0.1", self.port))
        self.sockets = []
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            try:
                here, _ = self.listener.accept()
                there = socket.create_connection(("127.0.0.1", self.to))
            except OSError:
                return
            self.sockets += [here, there]
            for pair in ((here, there), (there, here)):
                threading.Thread(target=self.pump, args=pair, daemon=True).start()

    def pump(self, source, target):
        try:
            while data := source.recv(65536):
                # What was sent into the cut arrives when it heals, as TCP would have it.
                self.whole.wait()
                target.sendall(data)
        except OSError:
            pass
        for end in (source, target):
            end.close()

    def close(self):
        self.whole.set()
        for end in (self.listener, *self.sockets):
            end.close()


def test_a_cut_moves_nothing_until_it_is_long(tmp_path):
    peer, own = free_port(), free_port()
    wire = Wire(peer)
    lab = tmp_path / "lab"
    made = Process(tmp_path / "made", ["cluster", "init", "--dir", str(lab), "--members", f"node-1=127.0.0.1:{wire.port}"])
    assert made.wait(20) == 0, made.output
    member = {"NF_PEER_LISTEN": f"127.0.0.1:{peer}", "NF_NODE_NAME": "node-1", "SIMULATION_MODE": "true",
              "NF_MEMBERS": f"node-1=127.0.0.1:{wire.port}", "NF_TLS_DIR": lab / "node-1/tls", **TIMES}
    with Serve(tmp_path / "member", member) as group:
        joined = Process(tmp_path / "joined", ["cluster", "join", "--dir", str(lab), f"w1=127.0.0.1:{own + 1}"],
                         {"NF_ADDR": group.urls[0]})
        assert joined.wait(20) == 0, joined.output
        settings = {"NF_ROLE": "worker", "NF_JOIN": group.urls[0], "NF_NODE_NAME": "w1", "SCHEDULER_PORT": own,
                    "NF_TLS_DIR": lab / "w1/tls", "NF_DATA_DIR": tmp_path / "worker/data", "SIMULATION_MODE": "true",
                    "NF_PORT_RANGE": "17600-17699", **TIMES}
        with Process(tmp_path / "worker", ["serve"], settings, "worker"):
            walk(group, wire)
        wire.close()


def walk(group, wire):
    state = lambda: {n["node_id"]: n["state"] for n in group.get("/nodes")["items"]}.get("w1")
    eventually("the worker is there", lambda: state() == "Ready")
    group.nf("node", "cordon", "node-1")
    body = {"tenant_id": "t1", "model_id": "m1", "model_version": "v1", "request_id": "cut", "resources": {"gpu": 1}}
    assert group.call("POST", "/schedule", body).status_code == 201
    before = group.wait_state("cut", "Running")["replicas"][0]
    group.nf("node", "uncordon", "node-1")
    address = group.get("/endpoints?model_id=m1")["items"][0]["address"]
    over, failed, served = threading.Event(), [], []

    def client():
        while not over.wait(0.05):
            try:
                requests.post(f"http://{address}/infer", data=b"x", timeout=5).raise_for_status()
                served.append(1)
            except requests.RequestException as error:
                failed.append(repr(error))

    thread = threading.Thread(target=client)
    thread.start()
    try:
        wire.whole.clear()
        eventually("silent", lambda: state() == "Unknown", 20)
        endpoint = group.get("/endpoints?model_id=m1")["items"][0]
        assert (endpoint["state"], endpoint["traffic"]) == ("Unknown", True)
        threading.Event().wait(25)  # Thirty seconds in all: the length of the cut is what is tested.
        wire.whole.set()
        eventually("back", lambda: state() == "Ready", 20)
        after = group.job("cut")["replicas"][0]
        assert (after["status"], after["generation"]) == ("Ready", before["generation"])
        assert not failed and len(served) > 200, failed[:3]
        wire.whole.clear()
        eventually("given up", lambda: state() == "Down", 60)
        moved = lambda: group.job("cut")["replicas"][0]
        eventually("replaced", lambda: moved()["status"] == "Ready" and moved()["placement"]["node"] == "node-1")
        assert moved()["generation"] == before["generation"] + 1
        assert not failed, "the old one serves on while nobody reaches it"
    finally:
        over.set()
        thread.join(10)
    wire.whole.set()
    eventually("back again", lambda: state() == "Ready", 30)
    eventually("the old one is gone", lambda: refused(address), 30)
    assert moved()["generation"] == before["generation"] + 1, "replaced once"
    assert json.dumps(group.get("/endpoints?model_id=m1")["items"]).count('"traffic": true') == 1


def refused(address):
    host, port = address.split(":")
    try:
        socket.create_connection((host, int(port)), timeout=1).close()
    except ConnectionRefusedError:
        return True
    return False
