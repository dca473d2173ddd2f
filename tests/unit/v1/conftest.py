# SPDX-License-Identifier: Apache-2.0
"""The V1 runner left vLLM with 0.34, and its tests with it."""

from vllm_cold.compat import versions

collect_ignore_glob = [] if versions.is_before("0.34") else ["test_*.py"]
