"""From folders of images to prepared splits: what the stage `prepare` does before any training.

`layouts` lists which files make which split, `images` and `sid` read files, `splits` divides a folder that has no
division, `pairs` makes each image's input and target.
"""
