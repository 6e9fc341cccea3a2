"""Quantisation that backends share: Q/DQ written and read, and weights as int8."""

from pathlib import Path

FILES = tuple(sorted(Path(__file__).parent.glob("*.py")))
"""For ``Backend.convert_files`` of those that use it."""
