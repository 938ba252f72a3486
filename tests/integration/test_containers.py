"""Versions that run in containers, where there is no engine: what waits, what is refused,
and what is said. With an engine: tests/e2e/test_docker.py.
"""

import json

import pytest
from nf import Process, Serve

BODY = {"tenant_id": "t1", "model_id": "m", "model_version": "v1", "resources": {"gpu": 0.1}}


@pytest.fixture(scope="module")
def group(tmp_path_factory):
    folder = tmp_path_factory.mktemp("containers")
    with Serve(folder, {"NF_CONTAINER_ENGINE": folder / "no.sock"}) as group:
        yield group


def publish(group, version, runtime, code=0):
    files = group.folder / f"model-{version}"
    files.mkdir()
    (files / "model.onnx").write_text("x")
    file = group.folder / f"{version}.json"
    file.write_text(json.dumps(runtime))
    group.nf("model", "publish", str(files), "--model", "m", "--version", version, "--runtime", str(file), code=code)


def test_a_container_waits_for_a_node_with_an_engine_and_says_so(group):
    publish(group, "v1", {"image": "a/b:v1", "program": {"argv": ["/serve", "{port}"]}})
    assert group.call("POST", "/schedule", {**BODY, "request_id": "c1"}).status_code == 202
    job = group.job("c1")
    assert job["runtime"] == "docker" and job["state"] == "Pending", job
    assert "a container engine" in group.nf("explain", "c1")
    assert "this node gets no containers" in group.output and "no.sock" in group.output


def test_what_must_never_run_twice_is_no_container(group):
    answer = group.call("POST", "/schedule", {**BODY, "request_id": "c2", "constraints": {"exclusive": True}})
    assert answer.status_code == 400 and answer.json()["field"] == "constraints.exclusive", answer.text


@pytest.mark.parametrize(("version", "change"), [
    ("untagged", {"image": "a/b"}),
    ("low", {"port": 80}),
    ("greedy", {"program": {"argv": ["/serve"], "env": {"NVIDIA_VISIBLE_DEVICES": "all"}}}),
    ("bare", {"program": {"argv": []}}),
    ("unknown", {"privileged": True}),
])
def test_a_container_that_can_not_be_is_not_published(group, version, change):
    publish(group, version, {"image": "a/b:v1", "program": {"argv": ["/serve"]}, **change}, code=2 if version in ("untagged", "unknown") else 6)


def test_a_profile_runs_in_an_image(group):
    files = group.folder / "profile"
    files.mkdir()
    (files / "weights.onnx").write_text("x")
    image = f"vllm/vllm-openai@sha256:{'a' * 64}"
    publish = ("model", "publish", str(files), "--model", "llm", "--version", "v1", "--profile", "vllm")
    group.nf(*publish, "--image", image)
    manifest = json.loads((group.store / "llm/v1/manifest.json").read_text())
    assert manifest["runtime"]["kind"] == "docker" and manifest["runtime"]["image"] == image
    assert manifest["runtime"]["program"]["argv"], "the profile's command line"
    group.nf(*publish, "--image", "VLLM", code=2)


def test_doctor_says_what_is_missing(group):
    found = {f["check"]: f for f in json.loads(group.nf("doctor", "-o", "json"))["items"]}
    assert found["container engine"]["verdict"] == "missing" and found["container engine"]["next"]


def test_only_engines_of_this_machine_are_spoken_to(tmp_path):
    settings = {"NF_CONTAINER_ENGINE": "tcp://127.0.0.1:2375", "NF_DATA_DIR": tmp_path / "data"}
    process = Process(tmp_path, ["serve"], settings)
    assert process.wait(20) == 2 and "NF_CONTAINER_ENGINE" in process.output
