# SPDX-License-Identifier: Apache-2.0
"""Scheduler: the streams of a request in lockstep."""
