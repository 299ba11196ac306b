"""A prior that a job starts from: what an export holds is taken, what can be none is refused with a reason."""

from __future__ import annotations

import json
from typing import Any

import pytest

from model.config import PPLConfig
from model.version.prior import PosePrior
from model.version.prior_values import check_given
from service.contract.errors import BadPrior
from service.contract.jobs.files import MAX_PRIOR_BYTES, check_prior, document_of, read_prior

NAN, INF = float("nan"), float("inf")


def prior(**changes: Any) -> dict[str, Any]:
    """A prior of four keypoints with two links."""
    document = {
        "num_keypoints": 4,
        "keypoint_names": ["nose", "neck", "hip", "tail"],
        "keypoint_prior": [[-0.5, -0.5], [0, -0.25], [0.25, 0.25], [1, 0]],
        "links": [{"i": 0, "j": 1, "weight": 2.0}, {"i": 1, "j": 2, "weight": 0.5}],
        "link_width": 1e-3,
    }
    return {name: value for name, value in {**document, **changes}.items() if value is not ...}


def matrix(*cells: tuple[int, int, float]) -> list[list[float]]:
    rows = [[0.0] * 4 for _ in range(4)]
    for i, j, weight in cells:
        rows[i][j] = weight
    return rows


BOTH = matrix((0, 1, 2.0), (1, 0, 2.0), (1, 2, 0.5), (2, 1, 0.5))

BAD = {
    "no object": [1, 2],
    "missing points": prior(keypoint_prior=...),
    "too few points": prior(keypoint_prior=[[0, 0]] * 3, num_keypoints=..., keypoint_names=...),
    "too many points": prior(keypoint_prior=[[0, 0]] * 33, num_keypoints=..., keypoint_names=...),
    "a point of three": prior(keypoint_prior=[[0, 0, 0]] * 4),
    "text for a number": prior(keypoint_prior=[["0", 0]] * 4),
    "true for a number": prior(keypoint_prior=[[True, 0]] * 4),
    "not a number": prior(keypoint_prior=[[NAN, 0]] * 4),
    "infinite": prior(keypoint_prior=[[0, INF]] * 4),
    "far outside": prior(keypoint_prior=[[0, 1.6]] * 4),
    "other count": prior(num_keypoints=5),
    "too few names": prior(keypoint_names=["a", "b"]),
    "a name twice": prior(keypoint_names=["a", "b", "c", "a"]),
    "an empty name": prior(keypoint_names=["a", "b", "c", ""]),
    "a name that is no text": prior(keypoint_names=["a", "b", "c", 4]),
    "neither links nor matrix": prior(links=...),
    "links are no list": prior(links={"i": 0}),
    "a link without weight": prior(links=[{"i": 0, "j": 1}]),
    "a link to itself": prior(links=[{"i": 1, "j": 1, "weight": 1}]),
    "a link to nowhere": prior(links=[{"i": 0, "j": 4, "weight": 1}]),
    "a link twice": prior(links=[{"i": 0, "j": 1, "weight": 1}] * 2),
    "a negative weight": prior(links=[{"i": 0, "j": 1, "weight": -1}]),
    "an infinite weight": prior(links=[{"i": 0, "j": 1, "weight": INF}]),
    "a huge weight": prior(links=[{"i": 0, "j": 1, "weight": 10**400}]),
    "a small matrix": prior(links=..., connectivity_prior=[[0, 1], [1, 0]]),
    "an asymmetric matrix": prior(links=..., connectivity_prior=matrix((0, 1, 1.0))),
    "a matrix with a diagonal": prior(links=..., connectivity_prior=matrix((1, 1, 1.0))),
    "a negative matrix": prior(links=..., connectivity_prior=matrix((0, 1, -1.0), (1, 0, -1.0))),
    "links and matrix that disagree": prior(connectivity_prior=matrix((0, 1, 2.0), (1, 0, 2.0))),
    "no width": prior(link_width=0),
    "an unknown source": prior(keypoint_prior_source="a dream"),
}

GOOD = {
    "links": prior(),
    "a matrix": prior(links=..., connectivity_prior=BOTH),
    "both": prior(connectivity_prior=BOTH),
    "no names": prior(keypoint_names=..., num_keypoints=..., link_width=...),
    "names that are null": prior(keypoint_names=None),
    "as GET /priors gives it": prior(category="dog", version="v1", settings={"steps": 1}, training={}),
}


@pytest.mark.parametrize("document", BAD.values(), ids=BAD.keys())
def test_what_can_not_be_a_prior_is_refused_at_the_door_as_by_the_model(document: Any) -> None:
    with pytest.raises(BadPrior) as refused:
        check_prior(document)
    assert "the prior is not valid: " in refused.value.detail
    assert len(refused.value.detail) < 400
    with pytest.raises(ValueError):
        PosePrior.from_json(document)


@pytest.mark.parametrize("document", GOOD.values(), ids=GOOD.keys())
def test_what_the_door_lets_in_the_model_reads_alike(document: dict[str, Any]) -> None:
    stored = document_of(check_prior(document))
    assert json.loads(json.dumps(stored)) == stored
    came, kept = PosePrior.from_json(document), PosePrior.from_json(stored)
    assert came.keypoint_prior.tolist() == kept.keypoint_prior.tolist()
    assert came.link_weights.tolist() == kept.link_weights.tolist() == [2.0, 0.0, 0.0, 0.5, 0.0, 0.0]
    assert (came.keypoint_names, came.link_width) == (kept.keypoint_names, kept.link_width)


@pytest.mark.parametrize("data", [b"", b"{", b"\xff\xfe", b"[" * 60_000, b" " * (MAX_PRIOR_BYTES + 1)])
def test_bytes_that_are_no_json_are_refused(data: bytes) -> None:
    with pytest.raises(BadPrior):
        read_prior(data)


FROM_PRIOR = [{"keypoint_prior": "predefined"}, {"connectivity_prior": "predefined"}]


@pytest.mark.parametrize("settings", FROM_PRIOR)
def test_settings_that_need_a_prior_want_one_of_their_size(settings: dict[str, str]) -> None:
    config = PPLConfig(num_keypoints=4, **settings)
    check_given(check_prior(prior()), config)
    with pytest.raises(ValueError, match=f"no prior is given; .*{next(iter(settings))}=predefined.* needs one"):
        check_given(None, config)
    with pytest.raises(ValueError, match="the prior has 4 keypoints; the setting num_keypoints is 5"):
        check_given(check_prior(prior()), PPLConfig(num_keypoints=5, **settings))


def test_settings_that_need_none_refuse_one() -> None:
    check_given(None, PPLConfig(num_keypoints=4))
    with pytest.raises(ValueError, match="a prior is given, but"):
        check_given(check_prior(prior()), PPLConfig(num_keypoints=4))


def test_links_are_not_taken_from_a_prior_without_any() -> None:
    bare = check_prior(prior(links=[]))
    check_given(bare, PPLConfig(num_keypoints=4, keypoint_prior="predefined"))
    with pytest.raises(ValueError, match="no link"):
        check_given(bare, PPLConfig(num_keypoints=4, connectivity_prior="predefined"))
