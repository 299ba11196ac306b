"""The settings of the model and its training, validated; importing this loads no torch.

The letters in the descriptions are those of the paper: S image side, K keypoints, M memory banks, V vectors a bank,
D their dimension.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

Value = bool | int | float | str

_MAX_DIGITS = 100  # of a number sent as text; int() refuses thousands of them
_HUGE = 10**18  # beyond every range, and still a float


class SettingError(ValueError):
    """An unknown setting, or a value out of its range; the message says which.

    Attributes:
        name: the setting's name as received.
    """

    def __init__(self, name: str, message: str) -> None:
        super().__init__(message)
        self.name = name


@dataclass(frozen=True)
class Allowed:
    """The values that a setting may have: a closed interval, one of ``choices``, or any of its type."""

    description: str
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()
    multiple_of: int | None = None
    shapes_model: bool = False

    def __str__(self) -> str:
        if self.choices:
            return "one of " + ", ".join(self.choices)
        bounded = self.low is not None and self.high is not None
        text = f"from {self.low:.9g} to {self.high:.9g}" if bounded else "any value"
        return text + (f", a multiple of {self.multiple_of}" if self.multiple_of else "")


def _setting(default: Any, *bounds: Any, **allowed: Any) -> Any:
    return field(default=default, metadata={"allowed": Allowed(*bounds, **allowed)})


def _model_setting(default: Any, *bounds: Any, **allowed: Any) -> Any:
    """Define a setting that shapes the model: a training that continues from its weights can't change it."""
    return _setting(default, *bounds, shapes_model=True, **allowed)


@dataclass(frozen=True)
class PPLConfig:
    """All settings of one model and its training; the defaults are the preset ``paper``.

    Raises:
        SettingError: a value is of the wrong type or out of range.
    """

    # the method
    method: str = _model_setting(
        "ppl",
        "'ppl' learns a pose prior with a memory; 'autolink' takes keypoints straight from the attention maps and "
        "has neither prior nor memory (He et al. 2022)",
        choices=("ppl", "autolink"),
    )
    keypoint_prior: str = _model_setting(
        "memory",
        "where the keypoint prior comes from: distilled from the memory, predefined (sent with the request), or random",
        choices=("memory", "predefined", "random"),
    )
    keypoint_prior_trainable: bool = _model_setting(
        False, "train a keypoint prior that is predefined or random; a prior from the memory is always distilled"
    )
    connectivity_prior: str = _model_setting(
        "random",
        "start values of the link weights: random, or predefined (sent with the request)",
        choices=("random", "predefined"),
    )
    connectivity_prior_trainable: bool = _model_setting(True, "train the link weights")
    # the model
    image_size: int = _model_setting(128, "S: side of the model's square input, in pixels", 32, 256, multiple_of=16)
    working_size: int = _model_setting(
        256,
        "largest side at which pictures are encoded and reconstructed; a larger input feeds the frozen network of "
        "features alone",
        32,
        256,
        multiple_of=16,
    )
    num_keypoints: int = _model_setting(16, "K: number of keypoints", 4, 32)
    base_width: int = _model_setting(64, "channels of the first block; deeper ones have 2, 4, 8 times as many", 8, 128)
    head: str = _model_setting(
        "affine",
        "how keypoints are placed: 'affine' transforms the prior (PPL eq. 1, 2); 'residual' adds the transformed "
        "prior, near zero at the start, to the mean position of the keypoint's attention map",
        choices=("affine", "residual"),
    )
    head_scale: float = _model_setting(0.1, "factor on the transformed prior with the head 'residual'", 0.0, 1.0)
    skips: str = _model_setting(
        "concat",
        "skip connections of the networks: 'concat' as in a U-Net; 'sum' narrows and adds, for a third of the work",
        choices=("concat", "sum"),
    )
    features: str = _model_setting(
        "none",
        "frozen ImageNet network whose activations are joined into the image encoder, so that it starts from features "
        "that know objects; it sees pictures at twice the side of the encoder; 'none' in the paper",
        choices=("none", "efficientnet_lite0"),
    )
    zoom: str = _model_setting("off", "'auto' crops to a thing of varying place or angle", choices=("auto", "off"))
    attention_start: str = _model_setting("random", "'clusters' of features, or random", choices=("random", "clusters"))
    num_banks: int = _model_setting(34, "M: memory banks", 1, 128)
    bank_size: int = _model_setting(16, "V: vectors in a memory bank", 2, 256)
    token_dim: int = _model_setting(512, "D: dimension of a memory vector", 8, 1024)
    memory_width: int = _model_setting(512, "channels of the memory's encoder", 8, 1024)
    memory_depth: int = _model_setting(4, "mixer blocks of the memory's encoder", 1, 8)
    link_width: float = _setting(1e-3, "sigma squared of PPL eq. 3, in units of [-1, 1] squared", 1e-5, 0.1)
    link_width_start: float = _setting(1e-3, "link width at the first step", 1e-5, 0.1)
    link_width_fraction: float = _setting(
        0.0, "part of the steps over which the link width falls geometrically from its start to its end", 0.0, 1.0
    )
    link_scale: float = _model_setting(512.0, "s: factor on the learning rate of the link weights", 1.0, 4096.0)
    link_init_mean: float = _setting(-4.0, "mean of the link weights before softplus at the start", -10.0, 4.0)
    link_init_std: float = _setting(1.0, "standard deviation of the same at the start", 0.0, 4.0)
    link_colours: int = _model_setting(
        0,
        "learned colours in which each link is drawn beside its strength, so that the reconstructor can "
        "distinguish links; 0 in the paper",
        0,
        16,
    )
    object_colour: bool = _model_setting(
        False, "give the reconstructor the mean colour of the image under the links; false in the paper"
    )
    # what it learns from
    mode: str = _setting(
        "auto",
        "the reference image: 'clips', another frame of the same clip; 'stills', the image itself, masked; 'auto' "
        "takes videos as clips and pictures as stills",
        choices=("auto", "stills", "clips"),
    )
    frames_per_clip: int = _setting(200, "frames taken of a video file, evenly spaced", 2, 10_000)
    locate: str = _setting(
        "auto",
        "pictures without a box: 'motion' cuts out what moves before a fixed camera, in a video or a folder; 'auto' "
        "does so where it is sure; 'off' takes them whole, or leaves them out if others have a box",
        choices=("auto", "motion", "off"),
    )
    align: str = _setting(
        "off",
        "for views from above: 'heading' rotates each picture so that the thing faces up in it, by the angle of its "
        "box, sent or found by motion; 'auto' does so where these are sure and turn to all sides; 'off' does not",
        choices=("off", "auto", "heading"),
    )
    labels_fit: str = _setting(
        "exact",
        "labels that state another size of their pictures: 'exact' refuses them, 'scale' scales those of the same "
        "aspect ratio, and turns those of the stored picture as its EXIF orientation says",
        choices=("exact", "scale"),
    )
    mask_ratio: float = _setting(0.8, "probability that a patch of the reference image is masked", 0.0, 1.0)
    mask_grid: int = _setting(16, "patches of the reference mask along one side", 2, 64)
    horizontal_flip: bool = _setting(True, "mirror half of the training pictures; off for sets aligned to one side")
    augmentation: float = _setting(
        0.0,
        "strength of random rotation, scaling, shift and tint of training pictures: 1 means up to 16 degrees, 16 %, "
        "5 % of the side, and 0.3 in contrast and brightness; 0 in the paper",
        0.0,
        2.0,
    )
    perceptual: str = _setting(
        "vgg19",
        "network whose activations the reconstruction loss compares",
        choices=("vgg19", "vgg16", "efficientnet_lite0"),
    )
    perceptual_size: int = _setting(
        128, "side to which pictures are resized for the perceptual network; 224 in the authors' code", 32, 256
    )
    boundary_weight: float = _setting(1.0, "weight of the boundary loss (PPL eq. 5)", 0.0, 1000.0)
    link_regularization_weight: float = _setting(1.0, "weight of the link regularisation (PPL eq. 6)", 0.0, 1000.0)
    memory_decode_weight: float = _setting(
        100.0, "weight of the memory's keypoint error beside its token error", 0.0, 1e4
    )
    occlusion_weight: float = _setting(
        0.0, "weight of the shift of keypoints when parts of the picture are hidden; PPL only", 0.0, 1000.0
    )
    refinement_weight: float = _setting(
        0.0, "weight of the shift of keypoints after a step of refinement; PPL only", 0.0, 1000.0
    )
    occlusion_start: float = _setting(
        0.75, "part of the steps after which these two losses start, once keypoints have settled", 0.0, 1.0
    )
    refine_gain: float = _setting(
        1.0, "part of the way a refinement step moves from the first pose to the refined one; 1 in the paper", 0.0, 1.0
    )
    refine_weighting: str = _setting(
        "constant",
        "how far a keypoint moves in a refinement step: 'constant', refine_gain of the way; 'scores', refine_gain "
        "times its refined odds over the sum of its first and refined odds, score / (1 - score), so that what was "
        "seen well at first stays",
        choices=("constant", "scores"),
    )
    memory_decay: float = _setting(0.9, "decay of the codebook's moving averages", 0.0, 0.9999)
    revive_after: int = _setting(100, "steps without a hit after which a memory vector is replaced", 1, 1_000_000)
    # how it is trained
    steps: int = _setting(20_000, "training steps", 1, 1_000_000)
    batch_size: int = _setting(64, "images in one step", 1, 512)
    learning_rate: float = _setting(1e-4, "highest learning rate", 1e-7, 0.1)
    schedule: str = _setting("constant", "learning rate over the steps", choices=("constant", "cosine"))
    weight_decay: float = _setting(0.0, "decoupled weight decay of AdamW; 0 is Adam", 0.0, 1.0)
    precision: str = _setting(
        "auto",
        "arithmetic of the convolutions; 'auto' is bf16 on devices that support it",
        choices=("auto", "fp32", "bf16"),
    )
    checkpoint_every: int = _setting(250, "steps between two checkpoints", 1, 1_000_000)
    history_snapshots: int = _setting(
        50, "snapshots of the prior along the run, evenly spaced, besides the first and the last", 0, 1000
    )
    seed: int = _setting(0, "seed of every random choice", 0, 2**31 - 1)

    def __post_init__(self) -> None:
        for item in fields(self):
            _check(item.name, getattr(self, item.name), item.type, item.metadata["allowed"])
        if self.mask_grid > self.side:
            raise SettingError(
                "mask_grid",
                f"mask_grid is {self.mask_grid}; it may be at most {self.side}, the smaller of image_size and "
                "working_size",
            )
        if self.keypoint_prior == "memory" and self.keypoint_prior_trainable:
            raise SettingError(
                "keypoint_prior_trainable",
                "keypoint_prior_trainable is true; a prior from the memory is distilled, never trained: "
                "set keypoint_prior to predefined or random, or leave this false",
            )
        if self.method == "autolink" and self.keypoint_prior != "memory":
            raise SettingError(
                "keypoint_prior",
                f"keypoint_prior is {self.keypoint_prior}, but the method autolink has no keypoint prior: "
                "set method to ppl, or leave this at memory",
            )

    def check_processes(self, processes: int) -> None:
        """Raise SettingError unless a batch can be shared evenly by this number of training processes."""
        if self.batch_size % processes:
            raise SettingError(
                "batch_size",
                f"batch_size is {self.batch_size}; it must be a multiple of {processes}, "
                "the number of processes that share a batch here",
            )

    @property
    def needs_prior(self) -> bool:
        """Whether training starts from a given prior."""
        return self.connectivity_prior == "predefined" or self.keypoint_prior == "predefined"

    @property
    def side(self) -> int:
        """The side at which pictures are encoded and reconstructed, in pixels."""
        return min(self.image_size, self.working_size)

    @property
    def num_links(self) -> int:
        """L = K(K-1)/2, the number of links."""
        return self.num_keypoints * (self.num_keypoints - 1) // 2

    @property
    def drawing_channels(self) -> int:
        """Channels of a drawn pose: the link map, its colours, and the object's colour."""
        return 1 + self.link_colours + (3 if self.object_colour else 0)

    def to_dict(self) -> dict[str, Value]:
        """Return the settings as JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> PPLConfig:
        """Read what :meth:`to_dict` returns; settings that are missing have their defaults. Raises SettingError."""
        parsed: dict[str, Any] = {name: parse(name, value) for name, value in values.items()}
        return replace(cls(), **parsed)


SHAPING = frozenset(item.name for item in fields(PPLConfig) if item.metadata["allowed"].shapes_model)
"""Settings that define the shape and meaning of a model's weights."""


DEFAULT_PRESET = "compact"
PRESETS: dict[str, dict[str, Value]] = {
    "paper": {},
    "compact": {
        "image_size": 128,
        "working_size": 64,
        "base_width": 16,
        "head": "residual",
        "skips": "sum",
        "features": "efficientnet_lite0",
        "zoom": "auto",
        "align": "auto",
        "attention_start": "clusters",
        "token_dim": 128,
        "memory_width": 128,
        "link_width": 7e-4,
        "link_width_start": 3e-3,
        "link_width_fraction": 0.5,
        "link_scale": 64.0,
        "link_init_std": 0.1,
        "link_colours": 3,
        "object_colour": True,
        "mask_grid": 8,
        "horizontal_flip": False,
        "perceptual": "efficientnet_lite0",
        "perceptual_size": 64,
        "link_regularization_weight": 0.0,
        "occlusion_weight": 0.5,
        "refinement_weight": 0.5,
        "refine_gain": 0.6,
        "refine_weighting": "scores",
        "steps": 3000,
        "batch_size": 32,
        "learning_rate": 1e-3,
        "schedule": "cosine",
        "weight_decay": 1e-4,
    },
}


def settings() -> dict[str, tuple[str, Allowed]]:
    """Return the type of every setting ("int", "float", "bool" or "str") and its allowed values, by name."""
    return {item.name: (str(item.type), item.metadata["allowed"]) for item in fields(PPLConfig)}


def parse(name: str, value: Any) -> Value:
    """Convert a setting from form text or a JSON value, and check it.

    Raises:
        SettingError: unknown name, wrong type or out of range; the message says what is allowed.
    """
    known = settings()
    if name not in known:
        raise SettingError(name, f"unknown setting '{name}'; known are preset, {', '.join(sorted(known))}")
    kind, allowed = known[name]
    if isinstance(value, str) and kind != "str":
        value = _parse_text(name, value, kind, allowed)
    if kind == "float" and isinstance(value, int) and not isinstance(value, bool):
        value = float(min(max(value, -_HUGE), _HUGE))
    if kind == "int" and isinstance(value, float) and value.is_integer():
        value = int(value)
    _check(name, value, kind, allowed)
    typed: Value = value
    return typed


def resolve(preset: str = DEFAULT_PRESET, overrides: Mapping[str, Any] | None = None) -> PPLConfig:
    """Return a preset with some settings replaced, by name; text is parsed as a form would send it.

    Raises:
        SettingError: unknown preset or setting, or a value out of range.
    """
    if preset not in PRESETS:
        raise SettingError("preset", f"preset is '{preset}'; it must be one of {', '.join(PRESETS)}")
    values = dict(PRESETS[preset])
    values.update({name: parse(name, value) for name, value in (overrides or {}).items()})
    return PPLConfig.from_dict(values)


def _parse_text(name: str, text: str, kind: str, allowed: Allowed) -> Any:
    text = text.strip()
    if kind == "bool":
        if text.lower() in ("true", "1", "yes", "on"):
            return True
        if text.lower() in ("false", "0", "no", "off"):
            return False
        raise SettingError(name, f"{name} is '{text}'; it must be true or false")
    try:
        return int(text[:_MAX_DIGITS]) if kind == "int" else float(text)
    except ValueError:
        raise SettingError(name, f"{name} is '{text}'; it must be a number, {allowed}") from None


def _check(name: str, value: Any, kind: Any, allowed: Allowed) -> None:
    expected = {"int": int, "float": (int, float), "bool": bool, "str": str}[str(kind)]
    if not isinstance(value, expected) or (isinstance(value, bool) and kind != "bool"):  # type: ignore[arg-type]
        raise SettingError(name, f"{name} is {value!r}; it must be of type {kind}, {allowed}")
    if allowed.choices and value not in allowed.choices:
        raise SettingError(name, f"{name} is '{value}'; it must be {allowed}")
    if allowed.low is not None and allowed.high is not None:
        if not allowed.low <= value <= allowed.high:  # NaN is outside too
            shown = "a number of many digits" if isinstance(value, int) and abs(value) > _HUGE else value
            raise SettingError(name, f"{name} is {shown}; it must be {allowed}")
        if allowed.multiple_of and value % allowed.multiple_of:
            raise SettingError(name, f"{name} is {value}; it must be {allowed}")
