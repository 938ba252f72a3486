"""Nodes that are played, jobs on them, and a client that follows the endpoints of a model.

It does not know what a test checks.
"""

import json
import threading
import time

import requests


def node(group, name):
    return next(n for n in group.get("/nodes")["items"] if n["node_id"] == name)


def nodes(group, **gpus):
    for name, count in gpus.items():
        answer = group.call("POST", "/node/register", {"node_id": name, "gpus": count})
        assert answer.status_code in (200, 201), answer.text


def job(group, name, model="m1", gpu=1, wanted="Running", **more):
    body = {"tenant_id": "t1", "model_id": model, "model_version": "v1", "request_id": name, "resources": {"gpu": gpu}}
    answer = group.call("POST", "/schedule", {**body, **more})
    assert answer.status_code in (201, 202), answer.text
    return group.wait_state(name, wanted)


class Follower:
    """Sends requests to whatever the endpoint watch says takes traffic, or through the gateway, and counts."""

    def __init__(self, group, model, gateway=False, quiet=False):
        """`quiet`: its end makes no job, and takes until the stream's next heartbeat."""
        self.group, self.model, self.gateway, self.quiet = group, model, gateway, quiet
        self.ready, self.sets, self.served, self.failed = [], [], 0, []
        self.over = threading.Event()
        self.threads = [threading.Thread(target=self.follow), *(threading.Thread(target=self.ask) for _ in range(4))]

    def follow(self):
        url = f"{self.group.url()}/endpoints?watch=true&model_id={self.model}"
        with requests.get(url, stream=True, timeout=30) as answer:
            for line in answer.iter_lines(chunk_size=1):
                if self.over.is_set():
                    return
                if line.startswith(b"data:") and b"items" in line:
                    items = json.loads(line[5:])["items"]
                    self.sets.append(items)
                    self.ready = [e["address"] for e in items if e["traffic"]]

    def ask(self):
        turn = 0
        while not self.over.is_set():
            addresses = self.ready
            if not addresses:
                time.sleep(0.005)
                continue
            turn += 1
            try:
                direct = f"http://{addresses[turn % len(addresses)]}/infer"
                url = f"{self.group.url()}/serve/t1/{self.model}/infer" if self.gateway else direct
                requests.post(url, data=b"x", timeout=5).raise_for_status()
                self.served += 1
            except requests.RequestException as error:
                self.failed.append(repr(error))

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self.over.set()
        # The stream says something: the follower sees that it is over.
        if not self.quiet:
            self.group.call("POST", "/schedule", {"tenant_id": "t1", "model_id": self.model, "model_version": "v1",
                                                  "resources": {"gpu": 0.001}})
        for thread in self.threads:
            thread.join(15)
