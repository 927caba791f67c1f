"""A report as JUnit XML, with a test case for each gate."""

import xml.etree.ElementTree as ElementTree

from .content import Report
from .gates import BEST_EFFORT, held


def to_junit(report: Report) -> "ElementTree.ElementTree[ElementTree.Element]":
    """A test case for each gate; gates that failed or were not measured are failures."""
    gates = report["gates"]
    failed = [gate for gate in gates if not held(gate["verdict"])]
    suite = ElementTree.Element(
        "testsuite",
        name="secateur",
        tests=str(len(gates)),
        failures=str(len(failed)),
        errors="0",
        time=f"{sum(report['timings_s'].values()):.3f}",
    )
    for gate in gates:
        case = ElementTree.SubElement(suite, "testcase", classname="secateur.gates", name=gate["name"])
        if not held(gate["verdict"]):
            message = f"{gate['verdict']}: {gate['value']} against {gate['limit']} ({gate['meaning']})"
            ElementTree.SubElement(case, "failure", message=message)
        elif gate["verdict"] == BEST_EFFORT:
            ElementTree.SubElement(case, "system-out").text = f"best effort: {gate['meaning']}"
    root = ElementTree.Element("testsuites")
    root.append(suite)
    ElementTree.indent(root)
    return ElementTree.ElementTree(root)
