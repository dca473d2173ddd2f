# SPDX-License-Identifier: Apache-2.0
"""Parts of ``benchmarks.bench_beside``: traffic, the process that serves it, statistics, pages."""
