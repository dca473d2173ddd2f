# SPDX-License-Identifier: Apache-2.0
"""Sends what the scheduler counted to the process that serves /metrics, next to what a KV connector
counted. vLLM sends a step's statistics to one front end, so with several API servers each figure is
added up once.
"""

from typing import Any

KEY = "cold"  # in kv_connector_stats


def attach(stats: Any, payload: dict[str, Any]) -> None:
    """Send ``payload`` to the front end along with these statistics."""
    stats.kv_connector_stats = {**(stats.kv_connector_stats or {}), KEY: payload}


def detach(stats: Any) -> dict[str, Any] | None:
    """Take the payload out again, before vLLM sees it; None if there is none."""
    carried = stats.kv_connector_stats if stats is not None else None
    if stats is None or carried is None or KEY not in carried:
        return None
    payload: dict[str, Any] = carried[KEY]
    stats.kv_connector_stats = {k: v for k, v in carried.items() if k != KEY} or None
    return payload
