# SPDX-License-Identifier: Apache-2.0
"""``vllm-cold doctor``: what is installed, what CoLD would use here, and whether it works.

One report for bug reports. ``report`` has its form, ``machine`` and ``sections`` what is looked at,
without vLLM and with it, ``self_test`` the engine whose tokens are compared with those of
``reference`` on the model of ``tiny``.
"""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vllm_cold.tools.doctor.report import Entry, Report, Section


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add ``doctor`` to the command line."""
    parser = subparsers.add_parser(
        "doctor",
        help="report on this installation and test it, for bug reports",
        description="Report versions, platform, plugin, kernels and what vLLM breaks, and decode "
        "with a tiny model to compare with a reference. Ends with status 1 if something is wrong. "
        "Values of environment variables are shown only for a list of known, harmless names.",
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--markdown", action="store_true", help="print markdown, for an issue")
    form.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--no-self-test", action="store_true", help="leave out the self-test (half a minute)"
    )
    parser.add_argument(
        "--timeout",
        type=float,
        default=300.0,
        metavar="SECONDS",
        help="how long the self-test's engine may take (default: %(default)g)",
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print the report; 1 if it names a problem, else 0.

    Raises:
        ToolError: if ``--timeout`` is not positive.
    """
    from vllm_cold.tools.doctor import report
    from vllm_cold.tools.errors import ToolError

    if not options.timeout > 0:
        raise ToolError(f"--timeout {options.timeout:g}: must be more than 0 seconds")
    made = _make(None if options.no_self_test else options.timeout)
    if options.json:
        print(report.to_json(made))
    elif options.markdown or not sys.stdout.isatty():
        print(report.to_markdown(made))
    else:
        report.print_terminal(made)
    return int(made.count(report.Status.PROBLEM) > 0)


def _make(timeout: float | None) -> Report:
    from vllm_cold.tools.doctor.report import Entry, Report, Section, Status, examine

    environment = dict(os.environ)  # before anything is imported that changes it
    # What vLLM logs would stand in the middle of the report, which says the same.
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    from vllm_cold.tools.doctor import machine, sections, self_test

    without_vllm: dict[str, Callable[[], Sequence[Entry] | Section]] = {
        "Versions": machine.installed,
        "Environment variables": lambda: machine.environment(environment),
    }
    looks = {**without_vllm, **sections.SECTIONS}
    if timeout is not None:
        print("vllm-cold doctor: self-test, about half a minute ...", file=sys.stderr)
        looks[self_test.TITLE] = lambda: self_test.run(timeout)
    if (reason := machine.unusable()) is None:
        return Report([examine(title, look) for title, look in looks.items()])
    # One cause is one problem, whatever hangs on it.
    return Report(
        [
            Section("vLLM", [Entry("import", reason, Status.PROBLEM)]),
            *(examine(title, look) for title, look in without_vllm.items()),
            Section(
                "Not checked",
                [Entry(title, "needs vLLM") for title in looks if title not in without_vllm],
            ),
        ]
    )
