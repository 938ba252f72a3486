"""What replicas wrote can be read by whichever member: of one that failed, one that crashes again and again, one
that is done, and of one that runs while the process that answers for it goes away and comes back.
"""

import json
import signal

from nf import Dev, Process, eventually
from worker import address, lab

# Refuses a flag that it does not know, as model servers do; says that it is done; or counts as it serves.
PROGRAM = """
import http.server, sys, threading, time
kind = sys.argv[1]
if kind == "--no-such-flag":
    sys.exit("error: unrecognized arguments: --no-such-flag")
if kind == "once":
    print("all of it is done", flush=True); sys.exit(0)
def count():
    for n in range(1_000_000):
        print(f"line {n}", flush=True); time.sleep(0.05)
threading.Thread(target=count, daemon=True).start()
class H(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.send_header("content-length", "0"); self.end_headers()
    def log_message(self, *a): pass
http.server.ThreadingHTTPServer((sys.argv[2], int(sys.argv[3])), H).serve_forever()
"""


def publish(group, folder, *kinds):
    files = folder / "program"
    files.mkdir()
    (files / "program.py").write_text(PROGRAM)
    for kind in kinds:
        runtime = folder / f"{kind}.json"
        runtime.write_text(json.dumps({"argv": ["{python}", "{model}", kind, "{host}", "{port}"]}))
        group.nf("model", "publish", str(files), "--model", kind.strip("-"), "--version", "v1", "--runtime", str(runtime))


def schedule(group, name, model, **constraints):
    body = {"tenant_id": "t1", "model_id": model, "model_version": "v1", "resources": {"gpu": 0.1}, "request_id": name,
            "constraints": constraints}
    answer = group.call("POST", "/schedule", body)
    assert answer.status_code in (201, 202), answer.text


class Follower(Process):
    """`nf logs -f` of a job, by way of one address."""

    def __init__(self, folder, job, url):
        super().__init__(folder, ["logs", "-f", job], {"NF_ADDR": url}, f"follow-{job}")

    def numbers(self):
        return [int(line.split()[1]) for line in self.output.splitlines() if line.startswith("line ")]

    def goes_on(self):
        before = len(self.numbers())
        eventually("it goes on", lambda: len(self.numbers()) > before + 20, 40)

    def has_all(self):
        numbers = self.numbers()
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers))), "each line once, and none is missing"


def test_logs_are_read_by_any_member(tmp_path):
    with Dev(tmp_path) as group:
        publish(group, tmp_path, "--no-such-flag", "once", "counts")
        told = lambda job, member: group.call("GET", f"/schedule/{job}/logs", member=member)
        everywhere = range(len(group.urls))
        node = group.members()[1]["name"]

        schedule(group, "never-again", "no-such-flag", restart="never", node=node)
        schedule(group, "crashes", "no-such-flag", node=node)
        schedule(group, "done", "once", restart="never", node=node)
        group.wait_state("never-again", "Failed")
        group.wait_state("done", "Succeeded")
        eventually("it waits for its next try", lambda: group.job("crashes")["replicas"][0]["restarts"] >= 1)
        for job, text in (("never-again", "--no-such-flag"), ("crashes", "--no-such-flag"), ("done", "all of it is done")):
            for member in everywhere:
                answer = eventually("an answer", lambda: told(job, member))
                assert answer.status_code == 200 and text in answer.text, (job, member, answer.status_code, answer.text)
        assert "unrecognized arguments" in group.nf("logs", "never-again")
        said = group.nf("describe", "job", "never-again")
        assert "Starting" in said and "Failed" in said, f"its steps are told after its end: {said}"
        group.nf("stop", "crashes", "--yes")
        never = told("never-again", 0).text
        assert "ExitedNonZero" in never or "ended by itself" in never, never

        # By way of another member, while the one that answers for it starts again.
        schedule(group, "counts", "counts", node=node)
        group.wait_state("counts", "Running")
        with Follower(tmp_path / "follow", "counts", group.urls[2]) as follower:
            follower.goes_on()
            group.kill(1)
            group.restart(1)
            follower.goes_on()
            follower.has_all()
            group.nf("stop", "counts", "--yes")
            assert follower.wait(40) == 0, follower.output[-500:]


def test_a_log_is_followed_across_the_end_of_a_worker_s_agent(tmp_path):
    with lab(tmp_path) as group:
        publish(group.member, tmp_path, "counts")
        schedule(group.member, "counts", "counts", node="w1")
        (replica,) = group.replicas("counts")
        assert address(replica)
        with Follower(tmp_path / "follow", "counts", group.member.urls[0]) as follower:
            for how in (signal.SIGINT, signal.SIGKILL):
                follower.goes_on()
                group.end(how)
                assert follower.child.poll() is None, "its replica lives"
                group.start()
                follower.goes_on()
                follower.has_all()
            assert (group.replicas("counts")[0]["generation"]) == replica["generation"]
            group.member.nf("stop", "counts", "--yes")
            assert follower.wait(40) == 0, follower.output[-500:]
