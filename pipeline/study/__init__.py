"""Optuna studies: which settings of `prune` leave the fewest MACs at no loss of quality.

One trial prunes with its own settings, fine-tunes once and is measured on the validation images (trial.py). Several
workers share a study by its storage alone. Optuna is imported in this folder and nowhere else.
"""
