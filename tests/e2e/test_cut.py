"""A worker is cut off from the group by a proxy that goes silent. Its replicas serve on.
For thirty seconds nothing moves; for longer the replica is replaced once, and the old
one is drained and goes when the worker is back. With NF_LONG (make soak) the second cut
takes ten minutes, with the times that nf has by itself.
"""

import json
import os
import socket
import threading
import time

from nf import eventually, free_port
from wire import Wire
from worker import Asker, Stream, address, lab

LONG = bool(os.environ.get("NF_LONG"))
# The shortest times that fit together: Down is 1.01 leases and a little.
TIMES = {} if LONG else {"NF_SUSPECT_AFTER": "2s", "NF_UNKNOWN_AFTER": "5s", "NF_LEASE": "36s", "NF_DOWN_AFTER": "42s"}
# Seconds that the second cut takes, and within which the node is Unknown and Down.
CUT, UNKNOWN, DOWN = (600, 25, 75) if LONG else (60, 20, 60)
ANSWER = 15  # seconds that an answer under way takes when the worker comes back


def test_a_cut_moves_nothing_until_it_is_long(tmp_path):
    peer = free_port()
    wire = Wire(peer)
    with lab(tmp_path, times=TIMES, peer=(peer, wire.port)) as group:
        walk(group, wire)
        wire.close()


def walk(lab, wire):
    group = lab.member
    state = lambda: lab.node("w1")["state"]
    eventually("the worker is there", lambda: state() == "Ready")
    group.nf("node", "cordon", "node-1")
    lab.schedule("cut")
    (before,) = lab.replicas("cut")
    group.nf("node", "uncordon", "node-1")
    (pid,) = lab.pids()
    asker = Asker(address(before))
    eventually("it answers", lambda: asker.answers > 5)
    cut = time.monotonic()
    wire.whole.clear()
    eventually("silent", lambda: state() == "Unknown", UNKNOWN)
    endpoint = group.get("/endpoints?model_id=m")["items"][0]
    assert (endpoint["state"], endpoint["traffic"]) == ("Unknown", True)
    threading.Event().wait(cut + 30 - time.monotonic())  # The length of the cut is what is tested.
    wire.whole.set()
    eventually("back", lambda: state() == "Ready", 20)
    (after,) = lab.replicas("cut")
    assert (after["generation"], lab.pids()) == (before["generation"], [pid])
    assert not asker.failures and asker.answers > 200, asker.failures[:3]
    cut = time.monotonic()
    wire.whole.clear()
    eventually("given up", lambda: state() == "Down", DOWN)
    (moved,) = lab.replicas("cut")
    assert moved["placement"]["node"] == "node-1" and moved["generation"] == before["generation"] + 1
    seen = asker.answers
    threading.Event().wait(max(0, cut + CUT - time.monotonic()))
    assert not asker.end() and asker.answers > seen and lab.pids() == [pid], "the old one serves on while nobody reaches it"
    under_way = Stream(address(before), ANSWER)
    eventually("an answer has begun", lambda: len(under_way.lines) > 1)
    wire.whole.set()
    eventually("back again", lambda: state() == "Ready", 30)
    eventually("the old one is gone", lambda: not lab.pids() and refused(address(before)), 30 + ANSWER)
    under_way.join(30)
    assert not under_way.wrong(), "it was drained"
    (now,) = lab.replicas("cut")
    assert (now["generation"], now["placement"]) == (moved["generation"], moved["placement"]), "replaced once"
    assert json.dumps(group.get("/endpoints?model_id=m")["items"]).count('"traffic": true') == 1


def refused(address):
    host, port = address.split(":")
    try:
        socket.create_connection((host, int(port)), timeout=1).close()
    except ConnectionRefusedError:
        return True
    return False
