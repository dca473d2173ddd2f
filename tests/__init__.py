# SPDX-License-Identifier: Apache-2.0
"""Tests of vllm_cold; a package, so that tests share tests.tiny and tests.naive."""
