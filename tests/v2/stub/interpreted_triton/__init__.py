# SPDX-License-Identifier: Apache-2.0
"""A Triton back end named "cpu" that compiles nothing: see ``tests.v2``."""
