# SPDX-License-Identifier: Apache-2.0
"""vLLM's source against what the package expects of it, on the release that is installed.

What can be seen from names and parameters alone is looked at in every engine
(``vllm_cold.compat.places``); what the scheduler's order of statements does, ``tests/scheduler``
shows. Here is the rest: a new release fails at a named line, and not in an engine.
"""
