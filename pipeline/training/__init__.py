"""Training: the one loop (loop.py), the recipes of an iteration and of the fine-tune (recipes.py),

what they need of a network (setup.py), and the device on which arithmetic repeats to the bit (device.py).
"""
