"""Debugging of accuracy: which layer of a deployed network is to blame, and what mends it."""
