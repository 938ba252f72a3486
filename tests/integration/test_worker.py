"""A worker beside a group of one: it joins with keys of the group's own authority,
answers for itself on its public port, and its ready file says where.
"""

import json
import re

import requests
from nf import Process, Serve, eventually, free_port, node_keys


def test_a_worker_answers_for_itself(tmp_path):
    peer, own = free_port(), free_port()
    lab = tmp_path / "lab"
    made = Process(tmp_path / "made", ["cluster", "init", "--open", "--dir", str(lab), "--members", f"node-1=127.0.0.1:{peer}"])
    assert made.wait(20) == 0, made.output
    member = {"NF_PEER_LISTEN": f"127.0.0.1:{peer}", "NF_NODE_NAME": "node-1",
              "NF_MEMBERS": f"node-1=127.0.0.1:{peer}", "NF_TLS_DIR": lab / "node-1/tls",
              "SIMULATION_MODE": "true"}
    with Serve(tmp_path / "member", member) as group:
        ready = tmp_path / "ready.json"
        settings = {"NF_ROLE": "worker", "NF_JOIN": group.urls[0], "NF_NODE_NAME": "w1", "SCHEDULER_PORT": own,
                    "NF_TLS_DIR": node_keys(lab, "w1"), "NF_DATA_DIR": tmp_path / "worker/data", "SIMULATION_MODE": "true",
                    "NF_PORT_RANGE": "17600-17699"}
        with Process(tmp_path / "worker", ["serve", "--ready-file", str(ready)], settings, "worker"):
            told = eventually("the worker is ready", lambda: ready.exists() and json.loads(ready.read_text()))
            assert told["addrs"] == [f"http://127.0.0.1:{own}"]
            health = requests.get(f"{told['addrs'][0]}/health", timeout=5).json()
            assert (health["role"], health["node_id"], health["simulation"]) == ("worker", "w1", True)
            assert health["components"]["agent"]["status"] == "simulated"
            metrics = requests.get(f"{told['addrs'][0]}/metrics", timeout=5).text
            assert re.search(r"^nf_build_info\{.*\} 1$", metrics, re.M) and "nf_model_fetch_bytes_total" in metrics
            eventually("the group knows the worker", lambda: "w1" in {
                node["node_id"] for node in group.get("/nodes")["items"] if node["kind"] == "worker"})
