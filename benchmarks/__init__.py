# SPDX-License-Identifier: Apache-2.0
"""Measurements that print what they measured on this machine, and claim nothing beyond it."""
