# SPDX-License-Identifier: Apache-2.0
"""Tasks for lm-evaluation-harness; docs/benchmarking.md runs them."""
