# SPDX-License-Identifier: Apache-2.0
"""Other programs for ``benchmarks.bench_e2e --peers``: their files, workers and environment."""
