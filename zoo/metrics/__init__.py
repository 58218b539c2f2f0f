"""Measurements: image quality (image.py) and codebook use (codebook.py)."""
