# SPDX-License-Identifier: Apache-2.0
"""``vllm-cold example``: a small model and an adapter, to try things on."""

from vllm_cold.tools.example.command import add_parser

__all__ = ["add_parser"]
