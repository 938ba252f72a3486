"""A worker's agent is away until the group gives its node up, and a job of it is deleted meanwhile. What is left of that
job ends when the agent is back, and so does what was replaced; the hour that may pass is in `agent/tests/leftovers.rs`.
And one that comes back to a group of which nobody answers takes up first what runs on its node.
"""

import os
import signal
import time

from nf import Process, eventually
from worker import BUDGET, LEASE, Asker, address, alive, lab


def test_leftovers_of_a_job_that_was_deleted_meanwhile_end_when_their_worker_is_back(tmp_path):
    with lab(tmp_path) as group:
        group.schedule("deleted", constraints={"node": "w1"})
        group.schedule("kept", constraints={"node": "w1"})
        (deleted,), (kept,) = group.replicas("deleted"), group.replicas("kept")
        pids = group.pids()
        assert len(pids) == 2
        group.end(signal.SIGKILL)
        group.member.nf("stop", "deleted", "--yes")
        # The node is given up: the job is over, and nobody waits for a word of its replica.
        group.member.wait_state("deleted", "Cancelled", limit=60)
        assert all(alive(pid) for pid in pids), "they serve on"
        lived = Asker(address(kept))
        eventually("it serves", lambda: lived.answers > 5)
        group.start()
        (again,) = group.replicas("kept")
        eventually("what nobody wants any more is gone, and what was replaced",
                   lambda: len(group.pids()) == 1 and not any(alive(pid) for pid in pids), 30)
        assert again["generation"] == kept["generation"] + 1
        lived.end()
        group.stop("kept")
        assert deleted["generation"] == 1


def test_an_exclusive_replica_ends_with_its_lease_though_nobody_answers_its_worker_s_next_start(tmp_path):
    with lab(tmp_path) as group:
        group.schedule("only", constraints={"node": "w1", "exclusive": True})
        asker = Asker(address(group.replicas("only")[0]))
        eventually("it answers", lambda: asker.answers > 5)
        (guard,) = group.guards()
        group.member.child.kill()
        group.member.child.wait()
        cut = time.monotonic()
        group.end(signal.SIGKILL)
        os.kill(guard, signal.SIGKILL)
        again = Process(tmp_path / "worker", ["serve"], group.settings, "again")
        try:
            seen = asker.answers
            eventually("adopted, though nobody says who the members are", lambda: "adopted a running replica" in again.output, 20)
            eventually("it goes on under the lease that was proven", lambda: asker.answers > seen + 100, 20)
            eventually("it is over", lambda: asker.failures, LEASE + 10)
            last = asker.last - cut
            assert LEASE - BUDGET - 4 < last < LEASE, last
        finally:
            again.child.kill()
            again.child.wait()
            asker.end()
