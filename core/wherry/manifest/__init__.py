"""The manifest: what one run does, written by the user, checked in full before anything is done."""

from __future__ import annotations

from wherry.manifest.loading import load_manifest
from wherry.manifest.sections import (
    MEASURED,
    DataSection,
    Drop,
    Gate,
    LimitsSection,
    Manifest,
    MetricSection,
    ModelSection,
    ParitySection,
    Selector,
)

__all__ = [
    "MEASURED",
    "DataSection",
    "Drop",
    "Gate",
    "LimitsSection",
    "Manifest",
    "MetricSection",
    "ModelSection",
    "ParitySection",
    "Selector",
    "load_manifest",
]
