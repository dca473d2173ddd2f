# SPDX-License-Identifier: Apache-2.0
"""The error that a user of the command line sees as one sentence."""

from __future__ import annotations


class ToolError(Exception):
    """A mistake that the user can mend: the message names the option, its value and the remedy.

    ``vllm-cold`` prints it without a traceback and ends with status 2.
    """
