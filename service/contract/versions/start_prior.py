"""A prior that a job starts from, checked before it is trusted.

The document is what ``GET /priors/{category}`` gives and what a version's prior.json holds. The rules are the
model's own (:mod:`model.version.prior_values`, plain Python), so that the gateway refuses what a training would refuse.
"""

from __future__ import annotations

import json
from typing import Any

from model.config import PPLConfig
from model.version.prior_values import PriorValues
from model.version.prior_values import read_prior as read_values
from service.contract.errors import BadPrior

MAX_PRIOR_BYTES = 2**20


def read_prior(data: bytes) -> PriorValues:
    """A prior as it came.

    Raises:
        BadPrior: too long, no JSON, or as :func:`check_prior`.
    """
    if len(data) > MAX_PRIOR_BYTES:
        raise BadPrior(f"the prior has {len(data)} bytes; {MAX_PRIOR_BYTES} are allowed")
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BadPrior(f"the prior is not JSON: {str(error)[:200]}") from error
    return check_prior(document)


def check_prior(document: Any) -> PriorValues:
    """A prior's document, checked.

    Raises:
        BadPrior: something is missing or not what it must be; the detail says what came and what was expected.
    """
    try:
        return read_values(document)
    except ValueError as error:
        raise BadPrior(f"this can't be a prior: {error}") from error


def document_of(prior: PriorValues) -> dict[str, Any]:
    """A prior as a job's prior.json; :func:`check_prior` reads it."""
    count = len(prior.keypoint_prior)
    pairs = [(i, j) for i in range(count) for j in range(i + 1, count)]
    return {
        "num_keypoints": count,
        "keypoint_names": list(prior.keypoint_names),
        "keypoint_prior": [list(point) for point in prior.keypoint_prior],
        "links": [{"i": i, "j": j, "weight": weight} for (i, j), weight in zip(pairs, prior.link_weights, strict=True)],
        "link_width": prior.link_width,
        "keypoint_prior_source": prior.keypoint_prior_source,
    }


def check_use(prior: PriorValues | None, config: PPLConfig) -> None:
    """Whether a job's settings and the prior that came with it suit each other.

    Raises:
        BadPrior: the settings want a prior and none came, the other way round, or the two do not fit.
    """
    if prior is None:
        if config.needs_prior:
            names = ("keypoint_prior", "connectivity_prior")
            wanted = " and ".join(f"{name}=predefined" for name in names if getattr(config, name) == "predefined")
            raise BadPrior(
                f"{wanted} starts from a prior and none came; send one in the field prior, or name a category that "
                "has one in prior_from"
            )
        return
    if not config.needs_prior:
        raise BadPrior(
            "a prior came, and the settings use none; set keypoint_prior=predefined, connectivity_prior=predefined "
            "or both, or send no prior"
        )
    count = len(prior.keypoint_prior)
    if count != config.num_keypoints:
        raise BadPrior(
            f"the prior has {count} keypoints and num_keypoints is {config.num_keypoints}; "
            "both must be the same, or leave num_keypoints out"
        )
    if config.connectivity_prior == "predefined" and not any(prior.link_weights):
        raise BadPrior("the prior has no link with a weight above 0; connectivity_prior=predefined needs some")
