# SPDX-License-Identifier: Apache-2.0
"""The error that a user of the command line sees as one sentence."""

from collections.abc import Iterator
from contextlib import contextmanager


class ToolError(Exception):
    """A mistake that the user can fix: the message names the option, its value and the remedy.

    ``vllm-cold`` prints it without a traceback and ends with status 2.
    """


@contextmanager
def named_libraries() -> Iterator[None]:
    """Turn the import error of a missing library into a sentence with the remedy."""
    try:
        yield
    except ModuleNotFoundError as error:
        name = (error.name or "vllm_cold").partition(".")[0]
        if name == "vllm_cold":
            raise
        raise ToolError(
            f"this command needs {name}: install vllm-cold with its extra tools, or pip install "
            f"{name}"
        ) from error
