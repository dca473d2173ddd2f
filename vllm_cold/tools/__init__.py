# SPDX-License-Identifier: Apache-2.0
"""The ``vllm-cold`` command: see, tune and check CoLD. Each sub-command is a package or module."""
