"""Long answers outlive what happens to their agent and to their replica: a restart, a kill and
an upgrade of the agent cut none and change no process; a scale-in and a drain of the node
wait for them. With NF_LONG (make soak) it is 200 answers of a minute each.
"""

import json
import os
import signal
import subprocess
import time

import requests
from nf import NF, eventually
from worker import Stream, address, lab

LONG = bool(os.environ.get("NF_LONG"))
STREAMS, SECONDS = (200, 60) if LONG else (40, 30)


def begin(replicas):
    """So many answers under way, spread over the replicas."""
    streams = [Stream(address(replicas[n % len(replicas)]), SECONDS) for n in range(STREAMS)]
    eventually("all have begun", lambda: all(len(s.lines) > 1 for s in streams), 60)
    return streams


def whole(streams):
    for stream in streams:
        stream.join(3 * SECONDS)
    wrong = [stream.wrong() for stream in streams if stream.wrong()]
    assert not wrong, f"{len(wrong)} of {len(streams)}: {wrong[:3]}"


def next_version(folder):
    """The same program as its next version would be: in another place, and with another number in it."""
    now = json.loads(subprocess.check_output([NF, "version", "-o", "json"]))["version"]
    later = now.replace(".0-", ".9-")
    assert later != now, now
    program = folder / "next/nf"
    program.parent.mkdir()
    program.write_bytes(NF.read_bytes().replace(now.encode(), later.encode()))
    program.chmod(0o755)
    return program, later


def test_a_restart_a_kill_and_an_upgrade_of_the_agent_cut_no_answer(tmp_path):
    with lab(tmp_path) as group:
        group.schedule("seven", replicas=7, constraints={"node": "w1"})
        group.schedule("one", constraints={"node": "w1", "exclusive": True})
        replicas = group.replicas("seven") + group.replicas("one")
        pids, guards = group.pids(), group.guards()
        assert len(pids) == 8, pids
        program, later = next_version(tmp_path)
        streams = begin(replicas)
        for how, next_ in ((signal.SIGTERM, NF), (signal.SIGKILL, NF), (signal.SIGTERM, program), (signal.SIGKILL, program)):
            group.end(how)
            group.start(next_)
            eventually("the worker is back", lambda: group.node("w1")["state"] == "Ready")
            group.replicas("seven")
            group.replicas("one")
            assert group.pids() == pids and group.guards() == guards, "the same processes"
        assert requests.get(f"http://127.0.0.1:{group.own}/health", timeout=5).json()["version"] == later
        assert not any(s.took for s in streams), "all this happened while they were under way"
        whole(streams)
        now = group.replicas("seven") + group.replicas("one")
        assert [r["generation"] for r in now] == [r["generation"] for r in replicas], "none was started again"
        # Told by the new agent, they end like any other.
        group.stop("seven", "one")


def test_a_scale_in_and_a_drain_wait_for_answers_under_way(tmp_path):
    with lab(tmp_path, drain={"timeout_s": 3 * SECONDS}) as group:
        group.member.nf("node", "cordon", "node-1", "--reason", "test")
        scaling = {"min": 4, "max": 8, "concurrency": STREAMS, "idle": "10m"}
        group.schedule("s", replicas=8, scaling=scaling)
        replicas = group.replicas("s")
        assert len(replicas) == 8 and len(group.pids()) == 8
        group.member.nf("node", "uncordon", "node-1")
        streams = begin(replicas)
        began = time.monotonic()
        group.member.nf("scale", "s", "4")
        eventually("scaled in", lambda: group.member.job("s")["ready"] <= 4)
        group.member.nf("node", "drain", "w1", "--reason", "test", "--yes")

        def stopping():
            node = json.loads(group.member.nf("describe", "node", "w1", "-o", "json"))
            stops = node.get("stopping", [])
            assert len(stops) == 8, (node, group.member.job("s"))
            return [s["stop"] for s in stops]

        stops = eventually("all eight are on their way out", stopping, 60)
        # Both deadlines are there for people to see, and neither has come.
        assert all(0 < s["term_in_s"] < s["kill_in_s"] <= 3 * SECONDS + 3 for s in stops), stops
        assert not any(s.took for s in streams) and time.monotonic() - began < SECONDS
        whole(streams)
        eventually("drained", lambda: group.node("w1")["drain"] == "Drained", 60)
        eventually("none is left there", lambda: group.pids() == [], 10)
        moved = [r for r in group.member.job("s")["replicas"] if r["status"] == "Ready"]
        assert [r["placement"]["node"] for r in moved] == ["node-1"] * 4, moved
        assert requests.get(f"http://{address(moved[0])}/infer", timeout=5).status_code == 200
        group.member.nf("stop", "s", "--yes")
        group.member.wait_state("s", "Cancelled")
