"""One thread per process: the models of the tests are tiny, and threads would only wait for each other."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
