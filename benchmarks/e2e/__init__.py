# SPDX-License-Identifier: Apache-2.0
"""Parts of ``benchmarks.bench_e2e``: run, check, show, and the processes that compute."""
