"""One thread per process: the models of the tests are tiny, and threads would only wait for each other."""

import os

from hypothesis import settings

os.environ.setdefault("OMP_NUM_THREADS", "1")
settings.register_profile("hnet", deadline=None)  # a loaded machine is no failure
settings.load_profile("hnet")
