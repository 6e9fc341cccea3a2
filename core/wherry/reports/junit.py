"""The report as JUnit XML: a test case per result and per gate, for CI systems."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from xml.etree import ElementTree as ET

from wherry.reports import RunRecord
from wherry.reports.words import Result, clean


def render(record: RunRecord) -> str:
    """One suite for the targets, one for the gates."""
    values = record.values
    root = ET.Element("testsuites", name=clean(f"wherry {values['manifest']}"))
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


def _target(result: Result) -> ET.Element:
    seconds = result["latency"]["median_ms"] / 1000 if result["latency"] else 0.0
    case = ET.Element(
        "testcase",
        classname=clean(result["target"]["device"]),
        name=clean(result["name"]),
        time=f"{seconds:.9f}",
    )
    if result["status"] != "ok":
        kind = "skipped" if result["status"] == "skipped" else "failure"
        _because(case, kind, result["error"])
    return case


def _gate(gate: Mapping[str, Any]) -> ET.Element:
    case = ET.Element("testcase", classname="gates", name=clean(gate["gate"]), time="0")
    if not gate["passed"]:
        _because(case, "failure", f"{gate['reason']} ({gate['location']})")
    return case


def _because(case: ET.Element, kind: str, text: str) -> None:
    element = ET.SubElement(case, kind, message=clean(text))
    element.text = clean(text)
