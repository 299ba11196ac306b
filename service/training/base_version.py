"""A training that goes on from a version: its weights, its settings, and the names of its keypoints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.config import PRESETS, SHAPING, PPLConfig, SettingError, parse, resolve
from model.version.prior_values import PriorValues
from service.contract.errors import BadSetting, StoreCorrupt
from service.contract.jobs.job import Continued
from service.contract.versions.additions import Additions, numbered
from service.contract.versions.start_prior import check_prior
from service.contract.versions.store import VersionStore
from service.http.problems import BadField


@dataclass(frozen=True)
class Base:
    """The version that a training goes on from.

    Attributes:
        settings: that it was trained with.
        weights: file of its weights.
        prior: its prior; its own network needs one where its settings say so.
        continued: what the job keeps of it.
    """

    settings: Mapping[str, Any]
    preset: str
    weights: Path
    prior: PriorValues
    continued: Continued

    @classmethod
    def of(cls, named: Any, category: Any, store: VersionStore) -> Base:
        """The version that a request names: one of its own category, or CATEGORY@VERSION. Blocking.

        Raises:
            BadField: it is no text, or the request has no category.
            UnknownCategory, UnknownVersion, BadCategoryName, BadVersionName, StoreCorrupt.
        """
        if not isinstance(named, str) or not named.strip():
            raise BadField(
                "continue_from", "continue_from is no text; it names a version, an alias or CATEGORY@VERSION"
            )
        if not isinstance(category, str):
            raise BadField("category", "category is missing or no text; it names what the pictures show")
        other, at, version = named.strip().rpartition("@")
        category = other if at else category.strip()
        name = store.resolve(category, version)
        info, document = store.info(category, name), store.prior(category, name)
        names: Any = Additions(store).names(category, name) or document.get("keypoint_names")
        before = info.get("training", {}).get("continued_from") or {}
        this = f"{category}@{name}"
        return cls(
            settings=store.config(category, name),
            preset=str(info.get("preset")),
            weights=store.weights_path(category, name),
            prior=check_prior({**document, "keypoint_names": list(names)} if names else document),
            continued=Continued(
                category=category,
                version=name,
                keypoint_names=None if numbered(names) else list(names),
                lineage=[*before.get("lineage", []), this],
            ),
        )

    def config(self, preset: str | None, wanted: Mapping[str, Any]) -> tuple[str, PPLConfig]:
        """The preset's name and all settings of a training that goes on from here, where not named those of before.

        Keypoints stay linked as sharply as they were in the end: ``link_width_start`` is the ``link_width`` of before.

        Raises:
            BadSetting: a setting that shapes the model is another than the version's, or is out of its range.
        """
        own = {**self.settings, "link_width_start": self.settings.get("link_width")}
        this = f"{self.continued.category}@{self.continued.version}"
        try:
            known = {name: value for name, value in own.items() if value is not None}
            base = PPLConfig.from_dict(known).to_dict()
        except SettingError as error:
            raise StoreCorrupt(f"the settings of {this} can't be read: {error}") from error
        name = self.preset if self.preset in PRESETS else "compact"
        if preset is not None and preset != name:
            raise BadSetting(f"preset is {preset!r}; {this} is of the preset {name}, and so is what continues from it")
        try:
            for setting, value in wanted.items():
                if setting in SHAPING and parse(setting, value) != base[setting]:
                    raise BadSetting(
                        f"{setting} is {value}; it shapes the model, and is {base[setting]} in {this}: leave it out, "
                        "or train anew",
                        extra={"field": setting},
                    )
            return name, resolve(name, {**base, **wanted})
        except SettingError as error:
            raise BadSetting(str(error), extra={"field": error.name}) from error
