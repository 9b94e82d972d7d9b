"""One thin file for each stage of dvc.yaml: read the parameters, call pipeline, write files, log."""

import os

# before torch is imported: two spinning OpenMP teams that share a core can be twenty times slower than one
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# `git status` would write its index, and leave index.lock behind for ever when it is killed
os.environ.setdefault("GIT_OPTIONAL_LOCKS", "0")
# before torch is loaded: its C++ part remarks on how several devices train together, where nothing is wrong
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
