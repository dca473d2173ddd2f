# SPDX-License-Identifier: Apache-2.0
"""Runnable examples: a small model, two tasks, and the adapters trained on them."""
