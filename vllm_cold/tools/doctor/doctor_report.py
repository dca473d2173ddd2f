# SPDX-License-Identifier: Apache-2.0
"""The doctor's report, as markdown or as JSON: of each section, by its title, the entries."""

import json
import os
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum

_LONGEST = 600  # characters of an exception's message


class Status(StrEnum):
    """What an entry means for contrastive decoding; a log is preformatted text."""

    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"
    LOG = "log"


@dataclass(frozen=True, slots=True)
class Entry:
    """What was looked at, what was found, and what that means."""

    name: str
    value: str
    status: Status = Status.OK


Look = Callable[[], Iterable[Entry]]
Report = Mapping[str, Sequence[Entry]]


def examine(look: Look) -> list[Entry]:
    """Return the entries of a section. A report about a broken installation must survive what is
    broken, so any exception becomes an entry, below those before it.
    """
    entries = []
    try:
        for entry in look():
            entries.append(entry)
    except Exception as error:
        entries.append(Entry("this section", failure(error), Status.PROBLEM))
    return entries


def failure(error: BaseException) -> str:
    """Describe an exception in one line."""
    message = textwrap.shorten(without_home(str(error)), _LONGEST, placeholder=" ...")
    return f"failed with {type(error).__name__}: {message}"


def without_home(text: str) -> str:
    """Return the text with ~ for the home folder, whose path has the user's name."""
    home = os.path.expanduser("~")
    return text.replace(home, "~") if len(home) > 1 else text


def count(report: Report, status: Status) -> int:
    """Count the entries with this status."""
    return sum(entry.status is status for entries in report.values() for entry in entries)


def verdict(report: Report) -> str:
    """Sum up the report in one line."""
    problems, warnings = (count(report, s) for s in (Status.PROBLEM, Status.WARNING))
    if not problems and not warnings:
        return "No problem found."
    return f"Problems: {problems}. Warnings: {warnings}."


def to_json(report: Report) -> str:
    """Return the report as JSON: ``verdict``, and ``sections``: lists of entries by title."""
    return json.dumps({"verdict": verdict(report), "sections": report}, default=asdict, indent=2)


def to_markdown(report: Report) -> str:
    """Return the report as markdown that reads well on a terminal, too."""
    lines = ["# vllm-cold doctor", "", verdict(report)]
    for title, entries in report.items():
        lines += ["", f"## {title}"]
        for entry in entries:
            if entry.status is Status.LOG:
                lines += ["", "```text", entry.value.replace("```", "'''"), "```"]
                continue
            label = "" if entry.status is Status.OK else f"**{entry.status}** "
            # One line, and nothing that GitHub takes for HTML.
            text = " ".join(f"{entry.name}: {entry.value}".split()).replace("<", "\\<")
            lines.append(f"- {label}{text}")
    return "\n".join(lines)
