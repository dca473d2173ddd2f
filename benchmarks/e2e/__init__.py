# SPDX-License-Identifier: Apache-2.0
"""The parts of ``benchmarks.bench_e2e``: run, check, show, and the processes that compute."""
