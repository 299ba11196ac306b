"""``python -m service.demo``: the main job from start to end on the embedded stack."""

import sys

from .main import main

sys.exit(main())
