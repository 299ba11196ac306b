import contextlib
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.config import PRESETS, PPLConfig, SettingError, parse, resolve, settings


def test_paper_preset_has_the_papers_numbers():
    paper = resolve("paper")
    assert (paper.image_size, paper.num_keypoints, paper.num_banks, paper.bank_size, paper.token_dim) == (
        128, 16, 34, 16, 512,
    )  # fmt: skip
    assert (paper.batch_size, paper.perceptual, paper.link_width, paper.steps) == (64, "vgg19", 1e-3, 20_000)


@pytest.mark.parametrize("preset", PRESETS)
def test_config_survives_a_round_trip_through_plain_values(preset):
    config = resolve(preset)
    assert PPLConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("num_keypoints", "3", "from 4 to 32"),
        ("num_keypoints", 33, "from 4 to 32"),
        ("num_keypoints", "many", "must be a number"),
        ("num_keypoints", 5.5, "type int"),
        ("image_size", 65, "multiple of 16"),
        ("horizontal_flip", "perhaps", "true or false"),
        ("learning_rate", "nan", "from 1e-07"),
        ("learning_rate", float("inf"), "from 1e-07"),
        ("perceptual", "alexnet", "one of vgg19, vgg16, efficientnet_lite0"),
        ("seed", True, "type int"),
        ("steps", 10**400, "a number of many digits"),
        ("steps", "1" + "0" * 5000, "a number of many digits"),
        ("learning_rate", 10**400, "from 1e-07"),
        ("learning_rate", "1e999", "from 1e-07"),
    ],
)
def test_bad_value_names_the_setting_and_what_it_may_be(name, value, says):
    with pytest.raises(SettingError, match=name) as caught:
        resolve("compact", {name: value})
    assert says in str(caught.value)
    assert caught.value.name == name


def test_unknown_setting_and_preset_are_refused_by_name():
    with pytest.raises(SettingError, match="unknown setting 'keypoints'"):
        resolve("compact", {"keypoints": 4})
    with pytest.raises(SettingError, match="preset is 'huge'"):
        resolve("huge")


def test_patches_smaller_than_a_pixel_are_refused():
    with pytest.raises(SettingError, match="mask_grid is 64"):
        resolve("compact", {"mask_grid": 64, "image_size": 32})


@given(st.sampled_from(sorted(settings())), st.one_of(st.text(max_size=8), st.integers(), st.floats(), st.none()))
def test_parse_gives_a_value_of_the_settings_type_or_a_setting_error(name, value):
    with contextlib.suppress(SettingError):
        assert type(parse(name, value)).__name__ == settings()[name][0]


def test_every_setting_is_described():
    assert all(allowed.description for _, allowed in settings().values())


def test_importing_config_loads_no_torch():
    check = "import sys, model, model.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0
