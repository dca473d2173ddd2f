# SPDX-License-Identifier: Apache-2.0
"""Tests that start no vLLM engine."""
