# SPDX-License-Identifier: Apache-2.0
"""Pages are written by jinja2."""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined


def environment(folder: Path) -> Environment:
    """For Markdown: templates in ``folder``, in which a line with a statement leaves none behind
    and an unknown name is an error.
    """
    return Environment(
        loader=FileSystemLoader(folder), undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
