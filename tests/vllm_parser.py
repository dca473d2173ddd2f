# SPDX-License-Identifier: Apache-2.0
"""vLLM's own parser of ``vllm serve``, whose module moves from release to release."""

from importlib import import_module
from typing import Any

_MODULES = (
    "vllm.entrypoints.common.cli_args",  # 0.33
    "vllm.entrypoints.launchers.cli_args",  # 0.32
    "vllm.entrypoints.openai.cli_args",  # 0.23
)


def serve_parser() -> Any:
    """With the options that plugins have added by now."""
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    for name in _MODULES:
        try:
            module = import_module(name)
        except ModuleNotFoundError:
            continue
        return module.make_arg_parser(FlexibleArgumentParser())
    raise AssertionError("make_arg_parser is in none of the known modules")
