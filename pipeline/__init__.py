"""Architecture-aware channel pruning for image-restoration networks."""
