"""Read what a report was written as: cases and problems of a JUnit file, and all texts."""

from __future__ import annotations

import dataclasses
import json
import xml.etree.ElementTree as ET
from collections.abc import Iterator

import xmlschema

from pytest_gpu_cluster.report import junit, render
from pytest_gpu_cluster.report.model import Report
from tests.hosts.readers import XSD

PROBLEMS = ("failure", "error", "skipped")
Key = tuple[str, str]  # classname and name
SCHEMAS = {kind: xmlschema.XMLSchema(XSD / f"{kind}.xsd") for kind in ("enriched", "xunit2")}


def cases_of(data: bytes) -> list[ET.Element]:
    return list(ET.fromstring(data).iter("testcase"))


def key_of(case: ET.Element) -> Key:
    return str(case.get("classname") or case.get("name")), str(case.get("name"))


def tag_of(case: ET.Element) -> str:
    return next((child.tag for child in case if child.tag in PROBLEMS), "passed")


def problem_of(case: ET.Element) -> ET.Element:
    return next(child for child in case if child.tag in PROBLEMS)


def problem_type(case: ET.Element) -> str:
    return next((child.get("type", "") for child in case if child.tag in PROBLEMS), "")


def visible(text: str) -> str:
    """Return `text` as XML can hold it."""
    return "".join(
        f"#x{ord(char):02X}" if ord(char) < 0x20 and char not in "\t\n\r" else char for char in text
    )


def schema_violations(data: bytes, kind: str = "enriched") -> list[str]:
    errors = SCHEMAS[kind].iter_errors(ET.fromstring(data))
    return [f"{error.path}: {error.reason}" for error in errors]


def texts_of(report: Report) -> Iterator[tuple[str, str]]:
    """Yield everything that leaves this machine, as its readers read it, with its kind."""
    for strict in (False, True):
        root = ET.fromstring(junit.write(report, strict=strict))
        texts = (
            text for element in root.iter() for text in (*element.attrib.values(), element.text)
        )
        yield "junit", "\n".join(text or "" for text in texts)
    yield "json", json.dumps(render.as_json(report), ensure_ascii=False)
    yield "json", render.json_text(report)
    yield "markdown", render.markdown(report, limit=10_000_000)
    yield "headline", render.headline(report)
    yield "baseline", str(dataclasses.asdict(report))
