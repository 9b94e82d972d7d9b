"""The paper's method, to be read in this order:

rules.py           the four rules: what an iteration removes, and what its verdict changes for the next one
prune.py           the loop: remove, retrain, measure, accept or go back
reconstruction.py  what the layers that read a removed channel make up for; which channels cost least when they go
gate.py            the verdict: what quality an iteration and the final network must hold
finetune.py        the last training, and the search for the smallest network that passes the gate after it
importance.py      what a channel is worth; iterations.py is the log, analysis.py what is written of a baseline

Then which channels go together: coupling.py, by tracing.py and labels.py; what an operation does with channels is in
operations.py and moves.py, with the sizes of splits by sizes.py and normalisations by norms.py. removal.py takes them
out, and trials.py keeps whole what a removal would get wrong (rehearsal.py and ways.py: what is tried).
"""
