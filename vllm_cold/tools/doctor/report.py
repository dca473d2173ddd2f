# SPDX-License-Identifier: Apache-2.0
"""What the doctor found, and how it is printed: for a terminal, for an issue, as JSON."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from importlib.util import find_spec
from typing import TextIO

_LONGEST = 600  # characters of an exception's message


class Status(StrEnum):
    """What an entry means for CoLD."""

    FACT = "fact"
    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of a section.

    Attributes:
        name: What was looked at.
        value: What was found, in words.
        status: Whether that is well.
    """

    name: str
    value: str
    status: Status = Status.FACT


@dataclass(frozen=True, slots=True)
class Section:
    """A titled list of entries.

    Attributes:
        title: Its heading.
        entries: Its lines.
        details: Text to be kept as it is, such as the end of a log.
    """

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
    sections = [asdict(section) for section in report.sections]
    return json.dumps({"verdict": report.verdict, "sections": sections}, indent=2)


def to_markdown(report: Report) -> str:
    """The report as GitHub's markdown, to be pasted into an issue."""
    lines = ["# vllm-cold doctor", "", report.verdict]
    for section in report.sections:
        lines += ["", f"## {section.title}", "", "| | | |", "|---|---|---|"]
        for entry in section.entries:
            lines.append(f"| {_label(entry.status)} | {_cell(entry.name)} | {_cell(entry.value)} |")
        if section.details:
            lines += ["", "```text", section.details.strip("\n").replace("```", "'''"), "```"]
    return "\n".join(lines)


def _cell(text: str) -> str:
    """Text for a cell of a markdown table: one line, and nothing that GitHub takes for HTML."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def _label(status: Status) -> str:
    return "" if status is Status.FACT else status.value


def print_terminal(report: Report, stream: TextIO) -> None:
    """The report with colours, if rich is installed (vLLM brings it), else as markdown."""
    if find_spec("rich") is None:
        print(to_markdown(report), file=stream)
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    colours = {Status.OK: "green", Status.WARNING: "yellow", Status.PROBLEM: "bold red"}
    console = Console(file=stream)
    for section in report.sections:
        console.print()
        console.print(Text(section.title, style="bold"))
        table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
        table.add_column(no_wrap=True)
        table.add_column(no_wrap=True)
        table.add_column(overflow="fold")
        for entry in section.entries:
            style = colours.get(entry.status, "")
            label = Text(_label(entry.status), style=style)
            table.add_row(label, Text(entry.name, style="cyan"), Text(entry.value))
        console.print(table)
        if section.details:
            console.print(Text(section.details, style="dim"))
    style = "bold red" if report.count(Status.PROBLEM) else "bold green"
    console.print()
    console.print(Text(report.verdict, style=style))
