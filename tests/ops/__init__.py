# SPDX-License-Identifier: Apache-2.0
"""Tests of the scoring op, each backend against the reference."""
