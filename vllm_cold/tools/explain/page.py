# SPDX-License-Identifier: Apache-2.0
"""The report as one HTML file with its style, script and data.

The answers are HTML; for a token's panel the page's script reads the report itself.
"""

import argparse
from functools import cache
from typing import Any

import jinja2
from jinja2.utils import htmlsafe_json_dumps

from vllm_cold import __version__
from vllm_cold.settings.presets import PRESETS
from vllm_cold.settings.table import SETTINGS
from vllm_cold.tools.explain import record, visible
from vllm_cold.tools.explain.record import Report


def render(report: Report) -> str:
    """Return the page."""
    # Nothing in the data can end the script element.
    data = htmlsafe_json_dumps(report, dumps=lambda shown: shown.model_dump_json())
    return _template("page").render(report=report, options=None, data=data)


def render_live(options: argparse.Namespace, server: Any) -> str:
    """Return the page of ``--serve``, which asks a ``Server``: without answers, with a form that
    starts with the options.
    """
    return _template("page").render(report=None, options=options, server=server)


def fragment(report: Report) -> str:
    """Return the answers alone, as HTML."""
    return _template("answers").render(report=report)


@cache
def _template(name: str) -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("vllm_cold.tools.explain", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(
        visible=visible,
        limits=record.DIVERGENCE_CLASSES,
        presets=PRESETS,
        settings=SETTINGS,
        version=__version__,
    )
    return environment.get_template(f"{name}.html.j2")
