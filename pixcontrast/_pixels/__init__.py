"""Pixels of embedding maps: resizing, indexing, unit length, groups and regions.

Inside the package an embedding map has shape (B, D, *S). Pixels have a flat index in [0, B·P),
with P the product of S: images in batch order, pixels of an image in row-major order.
"""
