# SPDX-License-Identifier: Apache-2.0
"""What the doctor found, and how it is printed: for a terminal, for an issue, as JSON."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from importlib.util import find_spec

_LONGEST = 600  # characters of an exception's message


class Status(StrEnum):
    """What an entry means for CoLD."""

    FACT = "fact"
    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"


@dataclass(frozen=True, slots=True)
class Entry:
    """What was looked at, what was found, in words, and whether that is well."""

    name: str
    value: str
    status: Status = Status.FACT


@dataclass(frozen=True, slots=True)
class Section:
    """A titled list of entries; ``details`` is text to be kept as it is, such as a log's end."""

    title: str
    entries: Sequence[Entry]
    details: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    """All sections, in their order."""

    sections: list[Section] = field(default_factory=list)

    def count(self, status: Status) -> int:
        """How many entries have this status."""
        return sum(entry.status is status for s in self.sections for entry in s.entries)

    @property
    def verdict(self) -> str:
        """The report in one line."""
        problems, warnings = self.count(Status.PROBLEM), self.count(Status.WARNING)
        if not problems and not warnings:
            return "No problem found."
        return f"Problems: {problems}. Warnings: {warnings}."


def examine(title: str, look: Callable[[], Sequence[Entry] | Section]) -> Section:
    """A section, or what kept it from being made.

    A report about a broken installation has to get past what is broken, so any exception becomes
    an entry of the section instead of ending the program.
    """
    try:
        found = look()
    except Exception as error:
        return Section(title, [Entry("this section", failure(error), Status.PROBLEM)])
    return found if isinstance(found, Section) else Section(title, found)


def failure(error: BaseException) -> str:
    """An exception in one line."""
    text = " ".join(without_home(str(error)).split())
    shortened = text if len(text) <= _LONGEST else text[:_LONGEST] + " ..."
    return f"failed with {type(error).__name__}: {shortened}"


def without_home(text: str) -> str:
    """Without the user's name in paths."""
    home = os.path.expanduser("~")
    return text.replace(home, "~") if len(home) > 1 else text


def to_json(report: Report) -> str:
    """The report as JSON: ``verdict``, and ``sections`` of ``entries``."""
    return json.dumps({"verdict": report.verdict, **asdict(report)}, indent=2)


def to_markdown(report: Report) -> str:
    """The report as GitHub's markdown, to be pasted into an issue."""
    lines = ["# vllm-cold doctor", "", report.verdict]
    for section in report.sections:
        lines += ["", f"## {section.title}", "", "| | | |", "|---|---|---|"]
        for entry in section.entries:
            cells = (_label(entry), entry.name, entry.value)
            lines.append(f"| {' | '.join(map(_cell, cells))} |")
        if section.details:
            lines += ["", "```text", section.details.strip("\n").replace("```", "'''"), "```"]
    return "\n".join(lines)


def _cell(text: str) -> str:
    """Text for a cell of a markdown table: one line, and nothing that GitHub takes for HTML."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def _label(entry: Entry) -> str:
    return "" if entry.status is Status.FACT else entry.status.value


def print_terminal(report: Report) -> None:
    """The report with colours; as markdown without rich, which vLLM brings."""
    if find_spec("rich") is None:
        print(to_markdown(report))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    colours = {Status.OK: "green", Status.WARNING: "yellow", Status.PROBLEM: "bold red"}
    console = Console()
    for section in report.sections:
        table = Table.grid("", "", "", padding=(0, 2, 0, 0))
        for entry in section.entries:
            label = Text(_label(entry), style=colours.get(entry.status, ""))
            table.add_row(label, Text(entry.name, style="cyan", no_wrap=True), Text(entry.value))
        console.print(Text(f"\n{section.title}", style="bold"), table)
        console.print(Text(section.details, style="dim"), end="\n" if section.details else "")
    style = "bold red" if report.count(Status.PROBLEM) else "bold green"
    console.print(Text(f"\n{report.verdict}", style=style))
