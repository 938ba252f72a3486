"""Two of three members are away, one frozen and one killed: models of the default kind answer
all the while, those that must never run twice end when their lease does. When the members
are back, the first are the same processes and the second run again, once. With NF_LONG
(make soak) they are away for ten minutes, with the times that nf has by itself.
And one that is asked to end ends its answers first.
"""

import os
import signal
import threading
import time

import pytest
import requests
from nf import Dev, eventually
from worker import BUDGET, LEASE, Asker, Stream, address, alive, processes, publish

LONG = bool(os.environ.get("NF_LONG"))
AWAY = 600 if LONG else 45
# Seconds from the last beat that was answered until an agent stops them, and until the guard kills them.
STOPS, KILLS = (45 - 2 * 5, 45 - 5) if LONG else (LEASE - 2 * BUDGET, LEASE - BUDGET)
TIMES = [] if LONG else [f"lease={int(LEASE * 1000)}ms", f"kill_budget={BUDGET:.0f}s", "down_after=38s"]


@pytest.fixture
def group(tmp_path):
    with Dev(tmp_path, args=[word for time_ in TIMES for word in ("--set", time_)]) as group:
        for model in ("default", "exclusive"):
            publish(group, tmp_path, model)
        try:
            yield group
        finally:
            # Replicas outlive their agents.
            for pid in processes(f"{tmp_path}/data/"):
                if "replicas" in open(f"/proc/{pid}/cmdline").read():
                    os.kill(pid, signal.SIGKILL)


def replica(group, job, member=0):
    (replica,) = group.job(job, member)["replicas"]
    assert replica["status"] == "Ready", replica
    return replica


def since(now, before, moved):
    """What is there now, as soon as it is another replica than before where it has to be one."""
    assert not moved or now["generation"] > before["generation"], now
    return now


def test_models_answer_while_two_of_three_members_are_away(group):
    jobs = {}
    for n, member in enumerate(group.members()):
        for kind, exclusive in (("default", False), ("exclusive", True)):
            job = f"{kind}-{n}"
            body = {"tenant_id": "t1", "model_id": kind, "model_version": "v1", "request_id": job, "resources": {"gpu": 0.1},
                    "constraints": {"node": member["name"], "exclusive": exclusive}}
            answer = group.call("POST", "/schedule", body)
            assert answer.status_code in (201, 202), answer.text
            jobs[job] = eventually(f"{job} is ready", lambda j=job: replica(group, j), 60)
    askers = {job: Asker(address(found)) for job, found in jobs.items()}
    eventually("all answer", lambda: all(asker.answers > 5 for asker in askers.values()))
    leader = group.leader()
    here, other = (n for n in range(3) if n != leader)
    frozen = group.member_pid(leader)
    try:
        os.kill(frozen, signal.SIGSTOP)
        group.kill(other)
        gone, through = time.monotonic(), 0
        while time.monotonic() < gone + AWAY:
            # Also through the gateway of the member that is left.
            answer = requests.post(f"{group.url(here)}/serve/t1/default/infer", data=b"x", timeout=10)
            assert answer.status_code == 200, f"{time.monotonic() - gone:.1f} s after they went: {answer.text}"
            through += 1
            threading.Event().wait(0.25)
        for job, asker in askers.items():
            if job.startswith("default"):
                assert not asker.failures and len(asker.pids) == 1, (job, asker.failures[:3])
            else:
                # Their last beat may have been answered a moment before.
                assert STOPS - 2.5 < asker.last - gone < KILLS + 1, (job, asker.last - gone, asker.pids)
        refused = group.call("POST", "/schedule", {"tenant_id": "t1", "model_id": "default", "model_version": "v1"}, member=here)
        assert refused.status_code in (503, 504), refused.text
    finally:
        os.kill(frozen, signal.SIGCONT)
    group.restart(other)
    # A table from before they went may still call them Ready, so those that have to move are waited for first.
    for job, before in sorted(jobs.items(), reverse=True):
        moved = job.startswith("exclusive")
        again = eventually(f"{job} is there", lambda j=job, b=before, m=moved: since(replica(group, j, here), b, m), 90)
        assert again["generation"] == before["generation"] + moved, (job, before, again)
    seen = {job: asker.answers for job, asker in askers.items()}
    eventually("the default kind still answers", lambda: all(
        a.answers > seen[j] + 20 for j, a in askers.items() if j.startswith("default")))
    for job, asker in askers.items():
        asker.end()
        assert job.startswith("exclusive") or (not asker.failures and len(asker.pids) == 1), (job, asker.failures[:3])
    print(f"{through} answers through the gateway in {AWAY} s; answers of each: { {j: a.answers for j, a in askers.items()} }")


def test_a_member_that_is_asked_to_end_answers_first_what_it_has_begun(group):
    """As its upgrade does. The answers go through it, and come from a replica on another member."""
    follower = next(n for n in range(3) if n != group.leader())
    other = group.members()[(follower + 1) % 3]["name"]
    body = {"tenant_id": "t1", "model_id": "default", "model_version": "v1", "request_id": "s", "resources": {"gpu": 0.1},
            "constraints": {"node": other}}
    assert group.call("POST", "/schedule", body).status_code in (201, 202)
    eventually("it is ready", lambda: replica(group, "s", follower), 60)
    way = f"{group.url(follower).removeprefix('http://')}/serve/t1/default"
    eventually("the follower knows", lambda: requests.post(f"http://{way}/infer", data=b"x", timeout=10).ok)
    streams = [Stream(way, 8) for _ in range(5)]
    eventually("all have begun", lambda: all(len(s.lines) > 1 for s in streams))
    pid = group.member_pid(follower)
    os.kill(pid, signal.SIGTERM)
    began = time.monotonic()
    for stream in streams:
        stream.join(30)
    assert [s.wrong() for s in streams] == [None] * 5
    assert time.monotonic() - began > 4, "they were under way"
    eventually("it has ended", lambda: not alive(pid), 10)
