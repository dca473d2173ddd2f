# SPDX-License-Identifier: Apache-2.0
"""Tests that drive the real scheduler class without running a model."""
