"""One thread a test process: `pytest -n` runs as many processes as there are cores, and their threads would only wait."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is imported, here and in what tests start
