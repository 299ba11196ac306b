import json

import pytest

from benchmarks.accuracy.rows import DOG_PRIOR, ROWS, describe, plan
from model.config import SettingError


def test_every_row_has_settings_and_a_prior_just_where_one_is_needed():
    for row in ROWS[1:]:
        for preset in ("compact", "paper"):
            chosen = plan(row, preset, {})
            assert (chosen.prior is not None) == chosen.config.needs_prior, row


def test_eleven_variants_differ_and_the_last_is_the_method_itself():
    configs = [plan(f"variant:{number}", "compact", {}).config for number in range(1, 12)]
    assert len({json.dumps(config.to_dict()) for config in configs}) == 11
    assert configs[-1] == plan("ppl", "compact", {}).config
    assert describe("variant:6") == "variant:6 (keypoints predefined, frozen; links random, trained)"


def test_autolink_differs_from_ours_by_the_method_and_what_the_link_map_shows():
    ours, theirs = (plan(row, "compact", {}).config.to_dict() for row in ("ppl", "autolink"))
    assert {name for name in ours if ours[name] != theirs[name]} == {"method", "link_colours", "object_colour"}
    assert (theirs["link_colours"], theirs["object_colour"]) == (0, False)


def test_published_autolink_takes_its_own_network_under_paper_and_ours_under_compact():
    assert plan("autolink-published", "paper", {}).config.perceptual == "vgg16"
    assert plan("autolink-published", "compact", {}).config.perceptual == "efficientnet_lite0"


def test_options_win_over_the_row():
    assert plan("autolink-published", "compact", {"mask_ratio": "0.65"}).config.mask_ratio == 0.65
    with pytest.raises(SettingError, match="row is 'ppl2'"):
        plan("ppl2", "compact", {})


def test_prior_given_to_a_row_that_takes_none_is_refused():
    with pytest.raises(ValueError, match="row ppl starts from no predefined prior"):
        plan("ppl", "compact", {}, DOG_PRIOR)


def test_prior_of_the_dog_links_its_limbs_alone():
    prior = plan("variant:1", "compact", {}).prior
    assert prior.keypoint_names[0] == "nose"
    assert (prior.link_weights > 0.1).sum() == 15
    assert prior.keypoint_prior.abs().max() < 1
