"""``python -m service.demo``: run the demo."""

import sys

from .main import main

sys.exit(main())
