"""A worker's agent that is stopped, killed and frozen while its replicas serve real
requests: what may run twice goes on, what must not ends in time, and nobody has two
generations at once, as the replicas' own logs show.
"""

import os
import signal
import time

from follower import Follower
from nf import eventually
from worker import BUDGET, LEASE, Asker, address, alive, lab


def test_eight_replicas_are_adopted_after_a_stop_and_after_a_kill(tmp_path):
    with lab(tmp_path) as group:
        group.schedule("seven", replicas=7, constraints={"node": "w1"})
        group.schedule("one", constraints={"node": "w1", "exclusive": True})
        replicas = group.replicas("seven") + group.replicas("one")
        pids, guards = group.pids(), group.guards()
        assert len(pids) == 8 and len(guards) == 1, (pids, guards)
        askers = [Asker(address(replica)) for replica in replicas]
        with Follower(group.member, "m", quiet=True) as client:
            eventually("a client that follows the watch knows all eight", lambda: len(client.ready) == 8)
            for how in (signal.SIGINT, signal.SIGKILL):
                seen, served = [asker.answers for asker in askers], client.served
                group.worker.child.send_signal(how)
                group.worker.child.wait(20)
                eventually("they answer without an agent",
                           lambda: all(a.answers > s + 10 for a, s in zip(askers, seen)) and client.served > served + 100)
                assert len(client.ready) == 8, "and are said to"
                group.start()
                eventually("the worker is back", lambda: group.node("w1")["state"] == "Ready")
                group.replicas("seven")
                group.replicas("one")
                assert group.pids() == pids, "the same processes"
                assert group.guards() == guards, "and the same guard"
            eventually("it has asked often enough to say something", lambda: client.served > 500)
            failures = [failure for asker in askers for failure in asker.end()]
            assert failures == [], f"{len(failures)} failed: {failures[:3]}"
            assert client.failed == [], (client.served, client.failed[:3])
            takes = [{e["address"] for e in items if e["traffic"]} for items in client.sets]
            assert all(len(all_) == 8 for all_ in takes), takes
        now = group.replicas("seven") + group.replicas("one")
        assert [r["generation"] for r in now] == [r["generation"] for r in replicas], "none was started again"
        group.stop("seven", "one")


def test_a_frozen_agent_s_exclusive_replica_ends_before_it_runs_elsewhere(tmp_path):
    with lab(tmp_path) as group:
        # The member's node could run it, too, but not at first.
        group.member.nf("node", "cordon", "node-1", "--reason", "test")
        group.schedule("default")
        group.schedule("only", constraints={"exclusive": True})
        default, only = group.replicas("default")[0], group.replicas("only")[0]
        group.member.nf("node", "uncordon", "node-1")
        pids = group.pids()
        serves, exclusive = Asker(address(default)), Asker(address(only))
        eventually("both answer", lambda: serves.answers > 5 and exclusive.answers > 5)
        guard = group.guards()
        assert len(guard) == 1

        group.worker.child.send_signal(signal.SIGSTOP)
        frozen = time.monotonic()
        eventually("the guard ended one of them", lambda: sum(alive(pid) for pid in pids) == 1, LEASE + 2)
        dead = time.monotonic()
        gone = next(str(pid) for pid in pids if not alive(pid))
        # The last beat that was answered may be a little older than the freeze.
        assert LEASE - BUDGET - 2.5 < dead - frozen < LEASE - BUDGET + 1, dead - frozen
        assert group.node("w1")["state"] != "Down", "before the group gives its node up"
        assert serves.failures == [], "the default kind goes on serving"
        assert exclusive.last < dead

        new = eventually("it runs elsewhere", lambda: [
            r for r in group.member.job("only")["replicas"] if r["generation"] > only["generation"] and r["status"] == "Ready"], 60)[0]
        second = Asker(address(new))
        eventually("it answers", lambda: second.answers > 5)
        answers = serves.answers
        group.worker.child.send_signal(signal.SIGCONT)
        eventually("the worker is back", lambda: group.node("w1")["state"] == "Ready", 30)
        seen = second.answers
        eventually("the new one goes on", lambda: second.answers > seen + 20)
        assert serves.answers > answers
        eventually("what was replaced is gone", lambda: group.pids() == [], 30)
        for asker in (serves, exclusive, second):
            asker.end()
        assert second.failures == []

        # Each replica's own word: the first never answered after the second had begun.
        log = [line.split() for line in group.requests.read_text().splitlines()]
        times = {pid: [float(t) for p, t in log if p == pid] for pid in {p for p, _ in log}}
        later = [t for pid, all_ in times.items() if int(pid) not in pids for t in all_]
        assert later and times[gone][-1] < min(later), (times[gone][-1], min(later))


def test_a_guard_that_is_killed_is_replaced(tmp_path):
    with lab(tmp_path) as group:
        group.schedule("only", constraints={"node": "w1", "exclusive": True})
        group.replicas("only")
        pids, old = group.pids(), group.guards()
        os.kill(old[0], signal.SIGKILL)
        new = eventually("another guard", lambda: [pid for pid in group.guards() if pid not in old])
        assert len(new) == 1 and group.pids() == pids
        group.member.nf("stop", "only", "--yes")
        group.member.wait_state("only", "Cancelled")
        group.worker.stop()
        eventually("nothing to guard, no agent: no guard", lambda: group.guards() == [], 20)
