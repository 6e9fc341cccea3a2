"""The report as JUnit XML: a test case per result and per gate, for CI systems."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from xml.etree import ElementTree as ET

from wherry.reports import RunRecord, comparison_words
from wherry.reports.words import Result, clean

Cases = Sequence[ET.Element]


def render(record: RunRecord) -> str:
    """One suite for the targets, one for the gates."""
    values = record.values
    targets = [_target(result) for result in values["results"]]
    gates = [_gate(gate) for gate in values["gates"]]
    named = f"wherry {values['manifest']}"
    return render_suites(named, {"targets": targets, "gates": gates}, values["started"])


def render_comparison(comparison: Mapping[str, Any]) -> str:
    """One suite: a test case for each figure of each target."""
    cases = list(_compared(comparison))
    named = f"wherry compare {comparison['base']['source']}, {comparison['new']['source']}"
    return render_suites(named, {"comparison": cases}, comparison["new"]["finished"])


def render_suites(name: str, suites: Mapping[str, Cases], timestamp: str) -> str:
    """The file of some suites, by their names, which began at ``timestamp``."""
    root = ET.Element("testsuites", name=clean(name))
    for title, cases in suites.items():
        suite = ET.SubElement(
            root,
            "testsuite",
            name=title,
            tests=str(len(cases)),
            failures=str(sum(case.find("failure") is not None for case in cases)),
            skipped=str(sum(case.find("skipped") is not None for case in cases)),
            errors="0",
            timestamp=clean(timestamp),
        )
        suite.extend(cases)
    ET.indent(root)
    return ET.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _compared(comparison: Mapping[str, Any]) -> Iterator[ET.Element]:
    failed = {
        (each["name"], each["figure"]): comparison_words.failure_text(each, comparison)
        for each in comparison["failures"]
    }
    for result in comparison["results"]:
        for figure in result["figures"] or [{"figure": "", "verdict": "", "why": result["why"]}]:
            place = (result["name"], figure["figure"])
            title = ": ".join(filter(None, place))
            device = clean(result["target"]["device"])
            case = ET.Element("testcase", classname=device, name=clean(title), time="0")
            if place in failed:
                _because(case, "failure", failed[place])
            elif figure["verdict"] in {"", "not comparable"}:
                _because(case, "skipped", figure["why"])
            yield case
    if ("", "") in failed:
        case = ET.Element("testcase", classname="comparison", name="targets in both", time="0")
        _because(case, "failure", failed["", ""])
        yield case


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
