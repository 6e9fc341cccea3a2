"""MACE as a backend of wherry."""
