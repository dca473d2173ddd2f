# SPDX-License-Identifier: Apache-2.0
"""The parts of ``benchmarks.bench_peers``: other programs' files, workers, environment, tables."""
