"""The difference of two priors."""

from __future__ import annotations

import json
from itertools import combinations

import numpy as np
import pytest

from service.contract.errors import BadRequest
from service.versions.comparison import compare
from service.versions.schemas import PriorDiff

POSE = [[0.0, 0.0], [0.5, 0.0], [0.0, 0.5], [-0.5, 0.0], [0.0, -0.5]]


def prior(version, pose=POSE, weights=None, names=None):
    weights = {(0, 1): 1.0, (0, 2): 0.5, (1, 2): 0.1} if weights is None else weights
    links = [{"i": i, "j": j, "weight": weights.get((i, j), 0.0)} for i, j in combinations(range(len(pose)), 2)]
    return {"category": "dog", "version": version, "keypoint_prior": pose, "keypoint_names": names, "links": links}


def ends(links):
    return [(link["from_ends"], link["to_ends"]) for link in links]


def test_version_does_not_differ_from_itself():
    found = compare(prior("a"), prior("a"), "auto", 0.25)
    assert (found["matched_by"], found["mean_moved"]) == ("number", 0)
    assert found["lost_links"] == found["gained_links"] == found["lost_keypoints"] == found["gained_keypoints"] == []
    assert len(found["links"]) == 10


def test_keypoints_learned_apart_are_matched_by_position():
    order = [3, 0, 4, 2, 1]  # keypoint n of the newer one is keypoint order[n] of the older
    moved = (np.array(POSE) + [[0.03, 0.04]] * 5)[order].tolist()
    inverse = {old: new for new, old in enumerate(order)}
    weights = {tuple(sorted((inverse[i], inverse[j]))): w for (i, j), w in {(0, 1): 2.0, (0, 2): 1.0}.items()}
    found = compare(prior("a"), prior("b", moved, weights), "auto", 0.25)
    assert found["matched_by"] == "position"
    assert "learned independently" in found["why"]
    assert [point["to_id"] for point in found["keypoints"]] == [inverse[i] for i in range(5)]
    assert {point["moved"] for point in found["keypoints"]} == {0.05}
    assert (found["lost_links"], found["gained_links"]) == ([], [])  # twice the weights, the same shares
    changed = found["links"][0]
    assert changed["from_ends"] == (1, 2)
    assert (changed["from_weight"], changed["to_weight"]) == (0.1, 0.0)


def test_links_come_and_go_at_the_threshold_in_the_response():
    newer = prior("b", weights={(0, 1): 1.0, (0, 2): 0.2, (3, 4): 0.25})
    found = compare(prior("a"), newer, "number", 0.25)
    assert found["strong"] == 0.25
    assert ends(found["lost_links"]) == [((0, 2), (0, 2))]
    assert ends(found["gained_links"]) == [((3, 4), (3, 4))]
    assert ends(compare(prior("a"), newer, "number", 0.05)["lost_links"]) == [((1, 2), (1, 2))]


def test_other_number_of_keypoints_leaves_some_without_a_match():
    fewer = prior("b", [POSE[0], POSE[1], POSE[3]], {(0, 1): 1.0, (1, 2): 0.5})
    found = compare(prior("a"), fewer, "auto", 0.25)
    assert [(point["from_id"], point["to_id"]) for point in found["keypoints"]] == [(0, 0), (1, 1), (3, 2)]
    assert (found["lost_keypoints"], found["gained_keypoints"]) == ([2, 4], [])
    assert ends(found["lost_links"]) == [((0, 2), None)]
    assert ends(found["gained_links"]) == [((1, 3), (1, 2))]
    back = compare(fewer, prior("a"), "auto", 0.25)
    assert (back["lost_keypoints"], back["gained_keypoints"]) == ([], [2, 4])
    assert ends(back["gained_links"]) == [(None, (0, 2))]
    with pytest.raises(BadRequest, match="5 and 3"):
        compare(prior("a"), fewer, "number", 0.25)


def test_keypoints_that_users_gave_the_same_names_are_the_same():
    names = ["a", "b", "c", "d", "e"]
    found = compare(prior("a", names=names), prior("b", POSE[::-1], names=names[::-1]), "auto", 0.25)
    assert (found["matched_by"], found["mean_moved"]) == ("name", 0)
    assert [point["name"] for point in found["keypoints"]] == names
    other = compare(prior("a", names=names), prior("b", POSE[::-1], names=["x", *names[1:]]), "auto", 0.25)
    assert other["matched_by"] == "position"


def test_matching_is_the_best_of_all_and_not_the_nearest_each():
    """Keypoint 0 lies nearest to 1's only partner: taking it would leave 1 with a long way."""
    older = prior("a", [[0.0, 0.0], [0.4, 0.0], [0.0, 0.9], [0.9, 0.9]], {})
    newer = prior("b", [[0.3, 0.0], [-0.4, 0.0], [0.0, 0.9], [0.9, 0.9]], {})
    found = compare(older, newer, "auto", 0.25)
    assert [(point["from_id"], point["to_id"]) for point in found["keypoints"]] == [(0, 1), (1, 0), (2, 2), (3, 3)]


OLD, NEW = "20260101T000000-aaaaaa", "20260202T000000-bbbbbb"


async def test_diff_over_http_takes_versions_and_aliases(http, publish, data_root, problem):
    publish("dog", OLD)
    publish("dog", NEW)
    path = data_root / "categories" / "dog" / "versions" / NEW / "prior.json"
    document = json.loads(path.read_text())
    document["keypoint_prior"][0] = [0.0, 0.1]
    path.write_text(json.dumps(document))
    await http.put("/priors/dog/aliases/champion", json={"version": OLD})
    answer = await http.get("/priors/dog/diff", params={"from": "champion"})
    assert answer.status_code == 200, answer.text
    found = PriorDiff.model_validate(answer.json())
    assert (found.from_version, found.to_version, found.mean_moved) == (OLD, NEW, 0.02)
    assert (found.keypoints[0].dx, found.keypoints[0].dy) == (0, 0.1)
    problem(await http.get("/priors/dog/diff"), 422, "bad_request")
    problem(await http.get("/priors/dog/diff?from=nosuch"), 404, "unknown_version")
    problem(await http.get("/priors/dog/diff?from=active&strong=0"), 422, "bad_request")
    problem(await http.get("/priors/dog/diff?from=active&match=colour"), 422, "bad_request")
