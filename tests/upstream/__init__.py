# SPDX-License-Identifier: Apache-2.0
"""vLLM's own scheduler tests, and ours on other releases of vLLM; no part of the usual run."""
