# SPDX-License-Identifier: Apache-2.0
"""Stands in for the package of this name, which vllm-ascend imports."""

from nothing import become_nothing

become_nothing(__name__)
