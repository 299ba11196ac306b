"""Check the prior that a job starts from, by the model's own rules (:mod:`model.version.prior_values`).

The document is that of ``GET /priors/{category}`` and of a version's prior.json.
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
    """Parse and check an uploaded prior. Raises BadPrior."""
    if len(data) > MAX_PRIOR_BYTES:
        raise BadPrior(f"the prior has {len(data)} bytes; at most {MAX_PRIOR_BYTES} are allowed")
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BadPrior(f"the prior is not JSON: {str(error)[:200]}") from error
    return check_prior(document)


def check_prior(document: Any) -> PriorValues:
    """Parse and check a prior's document. Raises BadPrior."""
    try:
        return read_values(document)
    except ValueError as error:
        raise BadPrior(f"the prior is not valid: {error}") from error


def document_of(prior: PriorValues) -> dict[str, Any]:
    """Return a prior as a JSON document for :func:`check_prior`."""
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
    """Raise BadPrior unless a job's prior, or its absence, matches the settings."""
    if prior is None:
        if config.needs_prior:
            names = ("keypoint_prior", "connectivity_prior")
            predefined = " and ".join(f"{name}=predefined" for name in names if getattr(config, name) == "predefined")
            raise BadPrior(
                f"{predefined} starts from a prior and the request has none; send one in the field prior, or name a "
                "category in prior_from"
            )
        return
    if not config.needs_prior:
        raise BadPrior(
            "the request has a prior and the settings use none; set keypoint_prior=predefined, "
            "connectivity_prior=predefined or both, or send no prior"
        )
    count = len(prior.keypoint_prior)
    if count != config.num_keypoints:
        raise BadPrior(
            f"the prior has {count} keypoints and num_keypoints is {config.num_keypoints}; "
            "both must be the same, or leave num_keypoints out"
        )
    if config.connectivity_prior == "predefined" and not any(prior.link_weights):
        raise BadPrior("the prior has no link with a weight above 0; connectivity_prior=predefined needs some")
