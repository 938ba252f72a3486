"""The group as people see it: the end of an upgrade, and a member that leaves, by itself or as the leader."""

import pytest
from nf import Dev, Serve, eventually

BODY = {"tenant_id": "t1", "model_id": "m1", "model_version": "v1", "resources": {"gpu": 1}}


@pytest.fixture(scope="module")
def group(tmp_path_factory):
    with Dev(tmp_path_factory.mktemp("group")) as group:
        yield group


def test_nothing_is_left_to_finalize_in_a_group_of_one_build(group):
    said = group.nf("cluster", "upgrade")
    assert "feature level 1" in said and "nothing to finalize" in said, said
    group.nf("cluster", "upgrade", "--finalize", code=2)  # nobody can be asked
    told = group.nf_json("cluster", "upgrade", "--finalize", "--yes")
    assert (told["feature_level"], told["highest"], told["finalized"], told["dry_run"]) == (1, 1, True, False), told
    answer = group.call("POST", "/cluster/upgrade", {"dryrun": True})
    assert (answer.status_code, answer.json()["field"]) == (400, "dryrun"), answer.text


def test_a_leader_that_leaves_is_followed_by_another(group):
    leader = group.leader()
    url, name = group.url(leader), group.get("/health", leader)["node_id"]
    group.nf("cluster", "leave", "--addr", url, "--dry-run")
    assert (group.leader(), len(group.get("/cluster/members")["items"])) == (leader, 3), "it was only asked"
    said = group.nf("cluster", "leave", "--addr", url, "--yes")
    assert f"{name} is out of the group" in said, said
    other = next(member for member in range(3) if member != leader)
    left = [member["name"] for member in group.get("/cluster/members", other)["items"]]
    assert len(left) == 2 and name not in left, left
    assert group.call("POST", "/schedule", BODY, other).status_code == 201


def test_a_last_voter_stays(tmp_path):
    with Serve(tmp_path) as alone:
        eventually("it leads", lambda: alone.get("/health")["role"] == "leader")
        alone.nf("cluster", "leave", "--yes", code=5)
        assert len(alone.get("/cluster/members")["items"]) == 1
