# SPDX-License-Identifier: Apache-2.0
"""Tests that talk to a real ``vllm serve`` process over HTTP."""
