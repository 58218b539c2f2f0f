"""Losses between images: pixel differences (reconstruction.py) and VGG16(HED) features (perceptual.py)."""
