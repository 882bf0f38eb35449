from __future__ import annotations

import os

from hypothesis import settings

# No deadline: a busy machine is not a failure. In CI the examples are the same on every run, so
# that a red run can be repeated; elsewhere they are drawn anew each time.
settings.register_profile("trtcal", deadline=None, derandomize=bool(os.environ.get("CI")))
settings.load_profile("trtcal")
