"""The paper's method, to be read in this order:

rules.py       the four rules: what an iteration removes, and what its verdict changes for the next one
prune.py       the loop: train, remove, retrain, measure, accept or go back
gate.py        the verdict: what quality an iteration and the final network must hold
finetune.py    the last training, and channels given back where the gate refuses its result
importance.py, iterations.py (the log); then which channels go together: coupling.py, tracing.py, labels.py
"""
