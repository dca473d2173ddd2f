# SPDX-License-Identifier: Apache-2.0
"""The doctor's report, as markdown or as JSON."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum

_LONGEST = 600  # characters of an exception's message


class Status(StrEnum):
    """What an entry means for contrastive decoding."""

    FACT = "fact"
    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"


@dataclass(frozen=True, slots=True)
class Entry:
    """What was looked at, what was found, and what that means."""

    name: str
    value: str
    status: Status = Status.FACT


@dataclass(frozen=True, slots=True)
class Section:
    """A titled list of entries; ``details`` is preformatted text, such as the end of a log."""

    title: str
    entries: Sequence[Entry]
    details: str = ""


def examine(title: str, look: Callable[[], Sequence[Entry] | Section]) -> Section:
    """A section. A report about a broken installation must survive what is broken, so any exception
    becomes an entry.
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
    """The text with ~ for the home folder, whose path has the user's name."""
    home = os.path.expanduser("~")
    return text.replace(home, "~") if len(home) > 1 else text


def count(sections: Sequence[Section], status: Status) -> int:
    """How many entries have this status."""
    return sum(entry.status is status for section in sections for entry in section.entries)


def verdict(sections: Sequence[Section]) -> str:
    """The report in one line."""
    problems, warnings = (count(sections, s) for s in (Status.PROBLEM, Status.WARNING))
    if not problems and not warnings:
        return "No problem found."
    return f"Problems: {problems}. Warnings: {warnings}."


def to_json(sections: Sequence[Section]) -> str:
    """The report as JSON: ``verdict``, and ``sections`` of ``entries``."""
    told = {"verdict": verdict(sections), "sections": [asdict(section) for section in sections]}
    return json.dumps(told, indent=2)


def to_markdown(sections: Sequence[Section]) -> str:
    """The report as markdown that reads well on a terminal, too."""
    lines = ["# vllm-cold doctor", "", verdict(sections)]
    for section in sections:
        lines += ["", f"## {section.title}"]
        for entry in section.entries:
            label = "" if entry.status is Status.FACT else f"**{entry.status}** "
            # One line, and nothing that GitHub takes for HTML.
            said = " ".join(f"{entry.name}: {entry.value}".split()).replace("<", "\\<")
            lines.append(f"- {label}{said}")
        if section.details:
            lines += ["", "```text", section.details.strip("\n").replace("```", "'''"), "```"]
    return "\n".join(lines)
