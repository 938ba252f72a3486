"""Where a machine is, what it is labelled and what it costs come from its settings,
are shown, can be asked for, and say where leadership may go.
"""

import pytest
from nf import Serve

BODY = {"tenant_id": "t1", "model_id": "m1", "model_version": "v1", "resources": {"gpu": 1}}
SETTINGS = {
    "NF_REGION": "eu",
    "NF_ZONE": "eu-a",
    "NF_RACK": "r1",
    "NF_LABELS": "disk=nvme,team=ml",
    "NF_COST_PER_HOUR": "H100-80G=2.5",
}


@pytest.fixture(scope="module")
def group(tmp_path_factory):
    with Serve(tmp_path_factory.mktemp("places"), SETTINGS) as group:
        yield group


def test_a_node_is_where_its_settings_say(group):
    node = group.get("/nodes")["items"][0]
    assert (node["region"], node["zone"], node["rack"]) == ("eu", "eu-a", "r1")
    assert node["labels"] == {"disk": "nvme", "team": "ml"} and node["drain"] == "None"


@pytest.mark.parametrize("constraints,status", [
    ({"region": "eu", "labels": {"disk": "nvme"}}, 201),
    ({"region": "us"}, 202),
    ({"max_cost_per_hour": 1}, 202),
])
def test_constraints_see_it(group, constraints, status):
    answer = group.call("POST", "/schedule", {**BODY, "constraints": constraints})
    assert answer.status_code == status, answer.text
    group.call("DELETE", f"/schedule/{answer.json()['request_id']}")


def test_leadership_goes_to_a_region_that_has_a_member(group):
    answer = group.call("POST", "/failover/promote", {"region": "eu"})
    assert answer.status_code == 200, answer.text
    assert (answer.json()["ok"], answer.json()["to"]) == (True, group.get("/health")["node_id"])
    nowhere = group.call("POST", "/failover/promote", {"region": "us"})
    assert (nowhere.status_code, nowhere.json()["reason"]) == (404, "NotFound")
