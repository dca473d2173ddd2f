# SPDX-License-Identifier: Apache-2.0
"""The report as one HTML file with its style, script and data.

The answers are HTML; for a token's panel the page's script reads the report itself.
"""

import jinja2
from jinja2.utils import htmlsafe_json_dumps

from vllm_cold import __version__
from vllm_cold.tools.explain import record, visible
from vllm_cold.tools.explain.record import Report


def render(report: Report) -> str:
    """Return the page."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("vllm_cold.tools.explain", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html.j2").render(
        report=report,
        # Nothing in the data can end the script element.
        data=htmlsafe_json_dumps(report, dumps=lambda shown: shown.model_dump_json()),
        visible=visible,
        limits=record.DIVERGENCE_CLASSES,
        version=__version__,
    )
