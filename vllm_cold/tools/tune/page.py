# SPDX-License-Identifier: Apache-2.0
"""The report as one HTML file that needs nothing beside it: no script, no network."""

from __future__ import annotations

import base64
import os.path
import re
import struct

import jinja2

from vllm_cold.tools.tune import changes
from vllm_cold.tools.tune.heatmap import DPI
from vllm_cold.tools.tune.report import (
    Report,
    interval,
    p_value,
    percent,
    points,
    size,
)

SHOWN = 100  # problems of each kind; the page has the ids of all others
_COUNTS = ("problems", "outputs")  # of Report.run, with names of our own


def render(report: Report, heatmap: bytes) -> str:
    """The page.

    Args:
        report: What to show.
        heatmap: The grid's picture (PNG), which is put inside.
    """
    # Names, prompts and outputs are anybody's text: escaped wherever they stand.
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("vllm_cold.tools.tune", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    width, height = _size(heatmap)
    compared = [row for row in report.rows if row.dev is not None]
    return environment.get_template(
        "page.html.j2"
    ).render(
        r=report,
        dev=compared[0].dev,
        compared=len(compared),
        confidence=f"{100 * report.confidence:g}",
        png=base64.b64encode(heatmap).decode(),
        width=width,
        height=height,
        size=size,
        pieces=re.compile(r"(?<=[ `])(--[a-z0-9-]+)").split,  # every second one is an option
        percent=percent,
        points=points,
        interval=interval,
        p_value=p_value,
        changed=[
            (
                name,
                [(one, *_parted(one)) for one in those[:SHOWN]],
                [one.id for one in those[SHOWN:]],
            )
            for name, those in changes.groups(report.changes)
        ],
        judged=changes.judged,
        run=[(name.replace("_", " "), _plain(name, value)) for name, value in report.run.items()],
    )


def _parted(change: changes.Change) -> tuple[str, str, str]:
    """What both outputs begin with, and how each goes on."""
    same = os.path.commonprefix([change.greedy, change.cold])
    return same, change.greedy[len(same) :], change.cold[len(same) :]


def _size(png: bytes) -> tuple[int, int]:
    """Width and height in CSS pixels: the picture has more of its own, and stays sharp."""
    width, height = struct.unpack(">II", png[16:24])
    return round(width * 96 / DPI), round(height * 96 / DPI)


def _plain(name: str, value: object) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        text = ", ".join(f"{key} {item}" for key, item in value.items()) or "none"
        return text.replace("_", " ") if name in _COUNTS else text
    if isinstance(value, (list, tuple)):
        return ", ".join(repr(item) for item in value) or "none"
    return str(value)
