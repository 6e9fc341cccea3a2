"""The report as JUnit XML: a test case per result and per gate, for CI systems."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from xml.etree import ElementTree as ET  # noqa: S405 -- written, never parsed

from wherry.records.gates import name_of
from wherry.reports import RunRecord

_FORBIDDEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # XML 1.0, 2.2


def render(record: RunRecord) -> str:
    """One suite for the targets, one for the gates."""
    values = record.values
    root = ET.Element("testsuites", name=_clean(f"wherry {values['manifest']}"))
    targets = [_target(result) for result in values["results"]]
    gates = [_gate(gate) for gate in values["gates"]]
    for name, cases in (("targets", targets), ("gates", gates)):
        suite = ET.SubElement(
            root,
            "testsuite",
            name=name,
            tests=str(len(cases)),
            failures=str(sum(case.find("failure") is not None for case in cases)),
            skipped=str(sum(case.find("skipped") is not None for case in cases)),
            errors="0",
            timestamp=values["started"],
        )
        suite.extend(cases)
    ET.indent(root)
    return ET.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _target(result: Mapping[str, Any]) -> ET.Element:
    median = (result["latency"] or {}).get("median_ms", 0.0)
    case = ET.Element(
        "testcase",
        classname=_clean(result["target"]["device"]),
        name=_clean(name_of(result)),
        time=f"{median / 1000:.9f}",
    )
    if result["status"] == "failed":
        _because(case, "failure", str(result["error"]))
    elif result["status"] == "skipped":
        _because(case, "skipped", str(result["error"]))
    return case


def _gate(gate: Mapping[str, Any]) -> ET.Element:
    case = ET.Element("testcase", classname="gates", name=_clean(gate["gate"]), time="0")
    if not gate["passed"]:
        _because(case, "failure", f"{gate['reason']} ({gate['location']})")
    return case


def _because(case: ET.Element, kind: str, text: str) -> None:
    element = ET.SubElement(case, kind, message=_clean(text))
    element.text = _clean(text)


def _clean(text: object) -> str:
    return _FORBIDDEN.sub("\N{REPLACEMENT CHARACTER}", str(text))
