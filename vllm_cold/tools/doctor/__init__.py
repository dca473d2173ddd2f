# SPDX-License-Identifier: Apache-2.0
"""``vllm-cold doctor``: what is installed, what vllm-cold would use here, and whether it works.

``doctor_report`` has the report's form, ``sections`` and ``server_section`` what is looked at.
``self_test`` decodes ``cases.json`` with ``tiny``'s model.
"""

import argparse
import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vllm_cold.tools.doctor.doctor_report import Entry


def add_parser(subparsers: "argparse._SubParsersAction[Any]") -> None:
    """Add ``doctor`` to the command line."""
    parser = subparsers.add_parser(
        "doctor",
        help="report on this installation and test it, for bug reports",
        description="Report versions, platform, plugin, kernels and changed interfaces of vLLM as "
        "markdown; decode with a tiny model and compare with a reference. Ends with status 1 if "
        "something is wrong. Environment variables are shown with their values only if they are "
        "known to be harmless.",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--no-self-test", action="store_true", help="leave out the self-test (half a minute)"
    )
    parser.add_argument(
        "--url",
        help="look at this server, too, such as http://localhost:8000: whether it contrasts, and "
        "how many sequence slots contrastive requests may have",
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print the report; return 1 if it names a problem, else 0."""
    environment = dict(os.environ)  # before anything is imported that changes it
    # vLLM's log would interrupt the report, which says the same.
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    from vllm_cold.tools.doctor import doctor_report, sections, self_test
    from vllm_cold.tools.doctor.doctor_report import Entry, Look, Status

    looks: dict[str, Look] = {
        "Versions": sections.installed,
        "Environment variables": lambda: sections.variables(environment),
    }
    with_vllm: dict[str, Look] = {
        "Devices": sections.devices,
        "Plugin": sections.plugin,
        "Kernels": sections.kernels,
        "vLLM's interfaces": sections.interfaces,
    }
    if not options.no_self_test:
        with_vllm["Self-test"] = self_test.run
    if (reason := sections.unusable()) is None:
        looks |= with_vllm
    else:  # one cause is one problem, whatever depends on it
        problem = Entry("import", reason, Status.PROBLEM)
        looks["vLLM"] = lambda: [problem, Entry("not checked without it", ", ".join(with_vllm))]
    if options.url is not None:
        looks["Server"] = lambda: _look_at(options.url)
    report = {title: doctor_report.examine(look) for title, look in looks.items()}
    print(doctor_report.to_json(report) if options.json else doctor_report.to_markdown(report))
    return int(doctor_report.count(report, Status.PROBLEM) > 0)


def _look_at(url: str) -> "Iterable[Entry]":
    from vllm_cold.tools.doctor import server_section  # with libraries that come with vLLM

    return server_section.look(url)
