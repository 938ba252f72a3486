"""Three members, each a process of its own behind a door that can be cut. The leader is cut off from
both others, together with the exclusive replica on its node, which clients still reach: it ends
before the two place it anew, and never do two generations answer, as their own request logs show.
Where all three are cut off from one another alone, a worker that reaches a majority of them keeps its own running.
And a member that begins while no other is there takes up what runs on its node all the same.
"""

import os
import signal
import time
from contextlib import ExitStack

import pytest
from nf import Process, Serve, eventually, free_port, node_keys
from wire import Door
from worker import BUDGET, DOWN, LEASE, SHORT, Asker, address, processes, publish

NAMES = ("node-1", "node-2", "node-3")


def started(folder, stack):
    """Three members, each behind a door, and the doors."""
    listens = [free_port() for _ in NAMES]
    doors = [Door(port) for port in listens]
    told = [f"{name}=127.0.0.1:{door.port}" for name, door in zip(NAMES, doors)]
    made = Process(folder / "made", ["cluster", "init", "--open", "--dir", str(folder / "lab"), "--members", ",".join(told)])
    assert made.wait(20) == 0, made.output
    store = folder / "store"
    store.mkdir()
    members = []
    for n, (name, port) in enumerate(zip(NAMES, listens)):
        member = Serve(folder / name, {
            "NF_PEER_LISTEN": f"127.0.0.1:{port}", "NF_NODE_NAME": name, "NF_MEMBERS": ",".join(told),
            "NF_TLS_DIR": folder / "lab" / name / "tls", "MODEL_STORE_URL": f"file://{store}", "SIMULATION_MODE": "true",
            "NF_PORT_RANGE": f"{17200 + 100 * n}-{17299 + 100 * n}", "NF_STOP_GRACE": "2s", **SHORT})
        stack.callback(ended, member)
        members.append(member)
    for member in members:
        member.wait_ready()
    return members, doors


def ended(member):
    member.child.kill()
    member.child.wait()


@pytest.fixture
def group(tmp_path):
    with ExitStack() as stack:
        stack.callback(lambda: [os.kill(pid, signal.SIGKILL) for pid in processes(f"{tmp_path}/")])
        members, doors = started(tmp_path, stack)
        for door in doors:
            stack.callback(door.close)
        first = members[0]
        eventually("all nodes are there", lambda: len([n for n in first.get("/nodes")["items"] if n["state"] == "Ready"]) == 3)
        yield members, doors


def schedule(member, request_id, **constraints):
    body = {"tenant_id": "t1", "model_id": "m", "model_version": "v1", "resources": {"gpu": 0.1}, "request_id": request_id,
            "constraints": constraints}
    answer = member.call("POST", "/schedule", body)
    assert answer.status_code in (201, 202), answer.text


def ready(member, request_id, generation=1):
    (replica,) = member.job(request_id)["replicas"]
    assert replica["status"] == "Ready" and replica["generation"] >= generation, replica
    return replica


def test_a_member_adopts_its_replicas_while_no_other_is_there(group, tmp_path):
    members, _ = group
    publish(members[0], tmp_path)
    schedule(members[0], "one", node=NAMES[0])
    replica = eventually("it is ready", lambda: ready(members[0], "one"), 30)
    asker = Asker(address(replica))
    eventually("it answers", lambda: asker.answers > 5)
    for member in members:
        ended(member)
    again = Process(tmp_path / NAMES[0], ["serve"], {
        key: value for key, value in members[0].environment.items() if key not in os.environ}, "again")
    try:
        eventually("adopted", lambda: "adopted a running replica" in again.output, 20)
        assert "serving" not in again.output.split("adopted a running replica")[-1], "nobody has answered it"
    finally:
        ended(again)
    assert asker.end() == []


def test_an_exclusive_replica_ends_with_its_lease_though_agent_and_guard_were_killed(group, tmp_path):
    """All members end at once, which is a cut for good; one begins again and finds no guard either."""
    members, _ = group
    publish(members[0], tmp_path)
    schedule(members[0], "only", node=NAMES[0], exclusive=True)
    asker = Asker(address(eventually("it is ready", lambda: ready(members[0], "only"), 30)))
    eventually("it answers", lambda: asker.answers > 5)
    (guard,) = processes("guard --dir", f"{tmp_path}/{NAMES[0]}/")
    for member in members:
        ended(member)
    os.kill(guard, signal.SIGKILL)
    cut, seen = time.monotonic(), asker.answers
    again = Process(tmp_path / NAMES[0], ["serve"], {
        key: value for key, value in members[0].environment.items() if key not in os.environ}, "again")
    try:
        eventually("adopted", lambda: "adopted a running replica" in again.output, 20)
        eventually("it goes on under the lease that was proven", lambda: asker.answers > seen + 100, 20)
        eventually("it is over", lambda: asker.failures, LEASE + 10)
        last = asker.last - cut
        print(f"it answered until {last:.1f} s after the cut; its lease had {LEASE} s")
        assert LEASE - BUDGET - 4 < last < LEASE, last
    finally:
        ended(again)
        asker.end()


@pytest.fixture
def worker(group, tmp_path):
    """A worker that comes in by the same doors as the members do."""
    members, _ = group
    process = Process(tmp_path / "w1", ["serve"], {
        "NF_ROLE": "worker", "NF_JOIN": ",".join(member.urls[0] for member in members), "NF_NODE_NAME": "w1",
        "SCHEDULER_PORT": free_port(), "NF_TLS_DIR": node_keys(tmp_path / "lab", "w1"), "NF_DATA_DIR": tmp_path / "w1/data",
        "NF_PORT_RANGE": "17500-17599", "MODEL_STORE_URL": f"file://{tmp_path}/store", "SIMULATION_MODE": "true",
        "NF_STOP_GRACE": "2s", **SHORT}, "worker")
    eventually("the worker is there", lambda: any(n["node_id"] == "w1" for n in members[0].get("/nodes")["items"]), 20)
    yield process
    ended(process)


def test_leases_go_on_while_a_majority_of_voters_hears_no_leader(group, worker, tmp_path):
    members, doors = group
    log = tmp_path / "requests"
    publish(members[0], tmp_path, env={"REQUESTS": str(log)})
    schedule(members[0], "only", node="w1", exclusive=True)
    old = eventually("it is ready", lambda: ready(members[0], "only"), 30)
    asker = Asker(address(old))
    eventually("it answers", lambda: asker.answers > 5)
    pids = {member.child.pid for member in members}
    cut = time.monotonic()
    for member, door in zip(members, doors):
        door.closed_to = pids - {member.child.pid}
    eventually("nobody can lead", lambda: all(m.call("GET", "/health/ready").status_code == 503 for m in members), 20)
    eventually("it outlives two leases", lambda: time.monotonic() - cut > 2 * LEASE, 2 * LEASE + 10)
    assert asker.failures == [] and asker.last - cut > 2 * LEASE - 1, "voters vouched for it"
    print(f"it answered for {asker.last - cut:.0f} s without a leader; its lease had {LEASE} s")
    # They hear one another again: whoever leads then waits a whole time-out for the worker.
    for door in doors:
        door.closed_to = frozenset()
    eventually("somebody leads", lambda: any(m.call("GET", "/health/ready").status_code == 200 for m in members), 20)
    time.sleep(DOWN + 5)
    now = ready(members[0], "only")
    assert now["generation"] == old["generation"] and asker.end() == [], "it was never given up"
    # Without a majority of voters nobody vouches.
    asker = Asker(address(old))
    eventually("it answers", lambda: asker.answers > 5)
    for member in members[1:]:
        ended(member)
    gone = time.monotonic()
    eventually("it ends", lambda: asker.failures, LEASE + 10)
    asker.end()
    assert LEASE - 2 * BUDGET - 3 < asker.last - gone < LEASE, asker.last - gone
    assert {line.split()[0] for line in log.read_text().splitlines()} == {asker.first}, "one process in all"


def test_the_old_leader_is_cut_off_together_with_its_node(group, tmp_path):
    members, doors = group
    first = members[0]
    roles = lambda: [member.get("/health")["role"] for member in members]
    lead = eventually("somebody leads", lambda: [n for n, role in enumerate(roles()) if role == "leader"])[0]
    log = tmp_path / "requests"
    publish(first, tmp_path, env={"REQUESTS": str(log)})
    others = [n for n in range(3) if n != lead]
    for n in others:
        first.nf("node", "cordon", NAMES[n])
    schedule(first, "only", exclusive=True)
    old = eventually("it is ready", lambda: ready(first, "only"), 30)
    for n in others:
        first.nf("node", "uncordon", NAMES[n])
    asker = Asker(address(old))
    eventually("it answers", lambda: asker.answers > 5)
    pid = members[lead].child.pid
    # Both ways: what comes in to it, and what it sends to the others.
    cut = time.monotonic()
    doors[lead].whole.clear()
    for n in others:
        doors[n].closed_to = {pid}
    eventually("another leads", lambda: any(members[n].get("/health")["role"] == "leader" for n in others), 15)
    seen = asker.answers
    eventually("the old one goes on under its lease", lambda: asker.answers > seen + 20)
    new = eventually("it runs elsewhere", lambda: ready(members[others[0]], "only", old["generation"] + 1), DOWN + 15)
    assert address(new) != address(old)
    last = asker.last - cut
    assert LEASE - 2 * BUDGET - 3 < last < LEASE, f"the old one answered until {last:.1f} s after the cut"
    second = Asker(address(new))
    eventually("the new one answers", lambda: second.answers > 20)
    doors[lead].whole.set()
    for n in others:
        doors[n].closed_to = frozenset()
    eventually("the old leader follows", lambda: members[lead].get("/health")["leader"] == members[others[0]].get("/health")["leader"], 20)
    seen = second.answers
    eventually("the new one goes on", lambda: second.answers > seen + 20)
    asker.end()
    assert second.end() == []
    # Each replica's own word.
    times = {}
    for line in log.read_text().splitlines():
        who, at = line.split()
        times.setdefault(who, []).append(float(at))
    assert set(times) == {asker.first, second.first}, "two processes in all"
    gap = times[second.first][0] - times[asker.first][-1]
    print(f"the old one answered for {last:.1f} s after the cut, the new one {gap:.1f} s later")
    assert gap > 0
