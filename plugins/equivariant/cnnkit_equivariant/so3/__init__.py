"""Rotations of functions on the sphere: harmonics, Wigner matrices, and convolutions that are diagonal in the order m."""
