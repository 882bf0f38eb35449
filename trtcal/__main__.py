"""``python -m trtcal`` is the command ``trtcal``."""

from trtcal.cli import main

main()
