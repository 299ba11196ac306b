"""Measure how well keypoints learned without labels predict labelled ones, and how well the prior fits the skeleton.

Numpy only. The functions here are for Python; the command prints JSON:

    python -m model.evaluate --predictions P.json --labels L.json            the headline
    python -m model.evaluate check --predictions P.json --labels L           whether the files fit; poses may be null
    python -m model.evaluate protocols --predictions P.json --labels L       every protocol
    python -m model.evaluate masks --squares S.npy --out DIR                 occluded pictures to predict on
    python -m model.evaluate occlusion --predictions O.json --labels L [--plot OUT.png]
    python -m model.evaluate skeleton --predictions P.json --labels L --prior prior.json

:mod:`model.scoring.prediction_files`, :mod:`model.scoring.commands` and :mod:`model.scoring.label_files` describe the
formats of the files.
"""

from __future__ import annotations

import sys

from model.scoring.commands import run
from model.scoring.linear_maps import Array as Array
from model.scoring.linear_maps import Split as Split
from model.scoring.linear_maps import apply_maps as apply_maps
from model.scoring.linear_maps import error_percent as error_percent
from model.scoring.linear_maps import fit_maps as fit_maps
from model.scoring.linear_maps import mean_pose_percent as mean_pose_percent
from model.scoring.protocols import evaluate as evaluate
from model.scoring.protocols import headline as headline
from model.scoring.protocols import sides as sides


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return its exit status: 0, or 2 if the files can't be used."""
    return run(sys.argv[1:] if arguments is None else arguments)


if __name__ == "__main__":
    sys.exit(main())
