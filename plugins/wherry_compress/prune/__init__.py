"""Pruning: filters and channels that are cut out, weights that become zero."""
