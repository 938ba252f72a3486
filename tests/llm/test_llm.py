"""A real language model, SmolLM2-135M on llama.cpp's own server, as replicas of a real group of
three: OpenAI's own client works unchanged, streams outlive the death of the leader, and a
replica that is scaled away ends none that it serves.
"""

import json
import shutil
import subprocess
import threading
import time
from pathlib import Path

import openai
import pytest
import requests
from nf import ROOT, Dev, eventually

HERE = ROOT / "tests/llm"
SLOTS = 12  # conversations that one replica has at a time
STREAMS = 20
TOKENS = 160  # of each stream that a replica must not cut
# The test says how many there are, so that each step has its number for as long as it takes.
SCALING = {"min": 1, "max": 2, "concurrency": 24, "advisory": True}
JOB = {"tenant_id": "t1", "model_id": "smollm2", "model_version": "v1", "resources": {"gpu": 0.5},
       "constraints": {"latency_ms": 60000, "spread": True}, "scaling": SCALING, "request_id": "smollm2-1"}


@pytest.fixture(scope="module")
def smollm2():
    told = subprocess.run(["sh", str(HERE / "fetch_smollm2.sh")], capture_output=True, text=True, check=True)
    return {key: Path(value) for key, value in (line.split("=", 1) for line in told.stdout.splitlines())}


@pytest.fixture(scope="module")
def group(tmp_path_factory, smollm2):
    with Dev(tmp_path_factory.mktemp("llm"), {"NF_PYTHON": smollm2["python"]}, ["--set", "scale_every=1s", "--set", "scale_settle=12s"]) as group:
        files = group.folder / "smollm2"
        files.mkdir()
        for file in (smollm2["model"], HERE / "llm_server.py"):
            shutil.copy(file, files)
        runtime = group.folder / "runtime.json"
        runtime.write_text(json.dumps({
            "argv": ["{python}", "{file:llm_server.py}", "{model}", "{host}", "{port}", str(SLOTS)],
            "ready": {"path": "/health", "timeout_s": 120},
            "drain": {"timeout_s": 300},
            "metrics": {"path": "/metrics", "running": "llamacpp:requests_processing",
                        "waiting": "llamacpp:requests_deferred"},
        }))
        args = ["--model", "smollm2", "--version", "v1", "--runtime", str(runtime)]
        group.nf("model", "publish", str(files), *args)
        answer = group.call("POST", "/schedule", JOB)
        assert answer.status_code in (201, 202), answer.text
        group.wait_state("smollm2-1", "Running", limit=180)
        yield group
        # Replicas outlive their agents: whoever leaves them behind takes the ports of the next group.
        group.nf("stop", "smollm2-1", "--yes")
        group.wait_state("smollm2-1", "Cancelled", limit=60)


def client(url):
    """As anybody makes one: an address, a key, and nothing of ours."""
    return openai.OpenAI(base_url=f"{url}/v1", api_key="whatever", max_retries=0, timeout=300)


def say(text):
    """A figure for people; the suite runs with -s."""
    print(f"\n    {text}", flush=True)


def messages(text):
    return [{"role": "user", "content": text}]


def resize(group, replicas):
    """So many replicas; answered through a member that lives."""
    group.nf("scale", "smollm2-1", str(replicas))


def serving(group, member=0):
    """Addresses of the replicas that take requests."""
    replicas = group.job("smollm2-1", member)["replicas"]
    return sorted(r["placement"]["address"] for r in replicas if r["status"] == "Ready")


def processing(address):
    """Requests that a replica works on, as llama.cpp counts them."""
    text = requests.get(f"http://{address}/metrics", timeout=30).text
    line = next(line for line in text.splitlines() if line.startswith("llamacpp:requests_processing "))
    return float(line.split()[1])


class Stream(threading.Thread):
    """One streamed answer: its pieces, when the first came, and how it ended."""

    def __init__(self, url, number, tokens):
        super().__init__(daemon=True)
        self.url, self.number, self.tokens = url, number, tokens
        self.pieces, self.began, self.first, self.ended, self.reason, self.error = 0, time.monotonic(), None, None, None, None

    def run(self):
        try:
            # Without an end of its own, so that its length is known: the server's extension of the API.
            parts = client(self.url).chat.completions.create(
                model="smollm2", messages=messages(f"Story number {self.number}, please."), max_tokens=self.tokens,
                stream=True, extra_body={"ignore_eos": True})
            for part in parts:
                for choice in part.choices:
                    if choice.delta.content:
                        self.pieces += 1
                        self.first = self.first or time.monotonic()
                    self.reason = choice.finish_reason or self.reason
        except (openai.APIError, requests.RequestException, OSError) as error:
            self.error = repr(error)
        except Exception as error:  # noqa: BLE001 - the client lets some errors of its transport through as they are
            self.error = repr(error)
        self.ended = time.monotonic()

    @property
    def whole(self):
        return self.error is None and self.reason == "length"

    def __repr__(self):
        return f"stream {self.number} by {self.url}: {self.pieces} pieces, {self.reason}, {self.error}"


def test_openais_own_client_works_unchanged_on_every_member(group):
    for url in group.urls:
        caller = client(url)
        assert "smollm2" in [model.id for model in caller.models.list()]
        assert caller.models.retrieve("smollm2").owned_by == "t1"
        answer = caller.chat.completions.create(model="smollm2", messages=messages("Say hello."), max_tokens=12)
        assert answer.choices[0].message.content and answer.choices[0].message.role == "assistant", answer
        assert 1 <= answer.usage.completion_tokens <= 12 and answer.usage.prompt_tokens > 0, answer.usage
        plain = caller.completions.create(model="smollm2", prompt="The capital of France is", max_tokens=5)
        assert plain.choices[0].text, plain
        with pytest.raises(openai.NotFoundError) as refused:
            caller.chat.completions.create(model="nobody-has-it", messages=messages("x"))
        assert refused.value.code == "ModelNotFound", refused.value
    with pytest.raises(openai.BadRequestError):
        client(group.url()).chat.completions.create(model="../x", messages=messages("x"))


def test_a_stream_comes_piece_by_piece(group):
    stream = Stream(group.url(), 0, 40)
    stream.run()
    assert stream.whole and stream.pieces >= 20, stream
    first, all_ = stream.first - stream.began, stream.ended - stream.began
    assert first < all_ / 2, f"the first piece came after {first:.2f} s of {all_:.2f} s: it was not streamed"
    say(f"alone: first piece after {first * 1000:.0f} ms, {stream.pieces / (stream.ended - stream.first):.0f} pieces a second")


class Load:
    """Clients that stream one answer after another; who loses its member goes to the next one."""

    def __init__(self, urls, clients):
        self.urls, self.end, self.streams, self.gone = urls, threading.Event(), [], None
        self.threads = [threading.Thread(target=self.run, args=(i,)) for i in range(clients)]

    def run(self, i):
        at = i
        while not self.end.is_set():
            stream = Stream(self.urls[at % len(self.urls)], i, 24)
            stream.run()
            self.streams.append(stream)
            if not stream.whole and stream.url == self.gone:
                at += 1

    def whole(self):
        return sum(stream.whole for stream in self.streams)

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self.end.set()
        for thread in self.threads:
            thread.join()


def test_two_replicas_stream_on_while_the_leader_dies(group):
    resize(group, 2)
    eventually("two replicas serve", lambda: len(serving(group)) == 2, 120)
    before = serving(group)
    leader = group.leader()
    with Load(group.urls, 12) as load:
        began = time.monotonic()
        eventually("both replicas stream", lambda: load.whole() >= 12 and all(processing(a) for a in before), 120)
        load.gone = group.url(leader)
        group.kill(leader)
        killed, seen = time.monotonic(), load.whole()
        eventually("streams go on without that leader", lambda: load.whole() >= seen + 24, 120)
        took = time.monotonic() - began
    after = serving(group, (leader + 1) % len(group.urls))
    group.restart(leader)
    cut = [stream for stream in load.streams if not stream.whole and stream.url != load.gone]
    assert not cut, f"{len(cut)} of {len(load.streams)} by members that lived: {cut[:3]}"
    assert after == before, "the same two replicas throughout"
    with_it = [stream for stream in load.streams if not stream.whole and stream.began < killed]
    assert len(with_it) <= len(load.threads), "who streamed through the leader itself lost one answer, and no more"
    pieces = sum(stream.pieces for stream in load.streams)
    say(f"two replicas, 12 clients, the leader killed: {load.whole()} streams whole, {len(with_it)} ended with the leader "
        f"that they came through, none besides; {pieces / took:.0f} pieces a second in all")


def test_a_replica_that_is_scaled_away_cuts_none_of_its_streams(group):
    eventually("two replicas serve", lambda: len(serving(group)) == 2, 120)
    both = serving(group)
    streams = [Stream(group.url(n % len(group.urls)), n, TOKENS) for n in range(STREAMS)]
    for stream in streams:
        stream.start()
    eventually("all of them stream, on both", lambda: all(s.first for s in streams) and all(processing(a) for a in both), 120)
    running = sum(stream.ended is None for stream in streams)
    assert running == STREAMS, f"{STREAMS - running} were over too soon to tell anything"
    resize(group, 1)
    eventually("one of them takes no more", lambda: len(serving(group)) == 1, 30)
    [stays], asked = serving(group), time.monotonic()
    [goes] = [address for address in both if address != stays]
    had, left = processing(goes), sum(stream.ended is None for stream in streams)
    assert had > 0 and left > 0, f"{had} streams on the one that goes, {left} in all: too late to tell anything"
    for stream in streams:
        stream.join(300)
    broken = [stream for stream in streams if not stream.whole]
    assert not broken, f"{len(broken)} of {STREAMS} were cut: {broken[:3]}"

    def refused():
        try:
            requests.get(f"http://{goes}/health", timeout=2)
        except requests.ConnectionError:
            return True
        return False

    eventually("the other one ends once nobody needs it", refused, 60)
    gone = time.monotonic() - asked
    last = max(stream.ended for stream in streams) - asked
    assert client(group.url()).chat.completions.create(
        model="smollm2", messages=messages("Still there?"), max_tokens=4).choices[0].message.content
    say(f"scaled in with {left} streams running, {had:.0f} of them on the replica that went: none cut; the last one ended "
        f"{last:.1f} s later, the replica {gone:.1f} s later")
