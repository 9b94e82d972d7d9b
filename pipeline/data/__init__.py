"""What training and evaluation read: prepared splits on disk and on a device, and what is done to clean images.

`storage` is a split's files, `dataset` the batches and whole images of one, `degradations` makes inputs of clean images
(small, dark or noisy), `raw` holds the sensor's units and noise, `luma` is for
networks of one channel. `pipeline.prepare` writes these splits.
"""
