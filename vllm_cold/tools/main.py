# SPDX-License-Identifier: Apache-2.0
"""Entry point of the ``vllm-cold`` command.

A sub-command is a module with ``add_parser(subparsers)``, which describes its options and sets
``run``: a function of the parsed arguments that returns the exit status. What a sub-command needs
besides the standard library is imported when it runs, so that ``--help`` answers at once.
"""

import argparse
import sys
import traceback
from collections.abc import Sequence

from vllm_cold import __version__
from vllm_cold.compat.versions import vllm_version
from vllm_cold.tools import doctor, example, explain, setup_cpu, tune
from vllm_cold.tools.command_error import ToolError


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of all sub-commands."""
    parser = argparse.ArgumentParser(
        prog="vllm-cold", description="See, tune and check contrastive decoding in vLLM."
    )
    parser.add_argument(
        "--version",
        action="version",
        version=f"vllm-cold {__version__}, vLLM {vllm_version()}",
        help="show the versions of vllm-cold and of vLLM, and exit",
    )
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in (explain, tune, doctor, example, setup_cpu):
        command.add_parser(subparsers)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        The exit status: 0, 1 for a negative result, 2 for a mistake that one sentence names, 3 for
        a fault of this program, with its traceback, 130 after Ctrl-C.
    """
    options = build_parser().parse_args(arguments)
    try:
        status = options.run(options)
    except ToolError as error:
        print(f"vllm-cold {options.command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except Exception:
        # Python's own status would be 1, which stands for a negative result.
        traceback.print_exc()
        print(
            f"vllm-cold {options.command}: failed unexpectedly; please report the lines above",
            file=sys.stderr,
        )
        return 3
    return int(status)


if __name__ == "__main__":
    sys.exit(main())
