# SPDX-License-Identifier: Apache-2.0
"""The doctor's section on a server that runs somewhere: whether it contrasts, and what regular
requests keep.
"""

from collections.abc import Iterator

import httpx
from prometheus_client.parser import text_string_to_metric_families

from vllm_cold.tools.command_error import ToolError
from vllm_cold.tools.doctor.doctor_report import Entry, Status
from vllm_cold.tools.server import Server

_SLOTS, _WAITING = "vllm:cold_sequence_slots", "vllm:cold_requests_waiting_for_share"


def look(url: str) -> Iterator[Entry]:
    """Ask the server for a contrast, and read its metrics."""
    try:
        server = Server(url)
    except ToolError as error:
        yield Entry("contrasts", str(error), Status.PROBLEM)
        return
    server.close()
    yield Entry("contrasts", f"{server.title} at {server.root} takes them")
    try:
        page = httpx.get(f"{server.root}/metrics", timeout=30).raise_for_status()
        families = list(text_string_to_metric_families(page.text))
    except (httpx.HTTPError, ValueError) as error:  # ValueError: it is no such page
        yield Entry("sequence slots", f"{server.root}/metrics: {error}", Status.WARNING)
        return
    slots: dict[str, dict[str, float]] = {}
    waiting: dict[str, float] = {}
    for family in families:
        for sample in family.samples:
            if sample.name == _SLOTS:
                slots.setdefault(sample.labels["engine"], {})[sample.labels["of"]] = sample.value
            elif sample.name == _WAITING:
                waiting[sample.labels["engine"]] = sample.value
    if not slots:
        text = f"{server.root}/metrics has no {_SLOTS}: --disable-log-stats, or an older vllm-cold"
        yield Entry("sequence slots", text, Status.WARNING)
    for engine, of in slots.items():
        all_, contrastive = int(of["engine"]), int(of["contrastive"])
        text = f"contrastive requests may have all {all_}; --cold-max-share would limit them"
        if contrastive < all_:
            text = (
                f"contrastive requests may have {contrastive} of {all_} (--cold-max-share); "
                f"{int(waiting.get(engine, 0))} wait for these"
            )
        yield Entry(f"sequence slots of engine {engine}", text)
