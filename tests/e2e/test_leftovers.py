"""A worker's agent is away until the group gives its node up, and a job of it is deleted meanwhile. What is left of that
job ends when the agent is back, and so does what was replaced; the other hour that may pass is `agent/tests/leftovers.rs`.
"""

import signal

from nf import eventually
from worker import Asker, address, alive, lab


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
