# SPDX-License-Identifier: Apache-2.0
"""The recipes of docs/benchmarking.md, as a reader runs them."""
