# SPDX-License-Identifier: Apache-2.0
"""The page of what vllm-cold hooks in vLLM: ``python -m docs.places`` writes it from the table."""

from pathlib import Path

from vllm_cold.compat import places
from vllm_cold.compat.patching import Hook, Relies, Time, Wraps

HOOKS = [h for name in (*places.TABLES, places.CPU_TABLE) for h in places.table(name)]
PAGE = Path(__file__).parent / "reference" / "places.md"
_HEAD = """# What it hooks in vLLM

Made from the tables that `vllm_cold/compat/places.py` names, which the plugins, `vllm-cold doctor`
and the tests read, by `python -m docs.places`. Where vLLM lacks a place, contrastive decoding is
unavailable in that engine and says which one it is, or does without as the row says. What would let
most of it go: [for vLLM's maintainers](../for-vllm.md).
"""


def text() -> str:
    """The page."""
    times = dict.fromkeys(hook.when for hook in HOOKS)
    return _HEAD + "\n".join(line for when in times for line in _section(when)) + "\n"


def _section(when: Time) -> list[str]:
    rows = [hook for hook in HOOKS if hook.when == when]
    return [
        "",
        f"## {when.text[0].upper()}{when.text[1:]}",
        *(line for row in rows for line in _row(row)),
    ]


def _row(hook: Hook) -> list[str]:
    lost = f" Without it: {hook.lost}." if hook.lost else ""
    link = f" *Upstream*: [#{hook.link.rpartition('/')[2]}]({hook.link})." if hook.link else ""
    platform = f" On {hook.platform.upper()} alone." if hook.platform else ""
    return [
        "",
        f"### `{hook.file}`",
        f"{hook.why} Since {hook.since}.{platform}{lost} *Can go*: {hook.can_go}{link}",
        "",
        *map(_place, hook.places),
    ]


def _place(place: Wraps | Relies) -> str:
    where = place.where.replace(":", ".")
    if isinstance(place, Wraps):
        taken = f"({', '.join(place.takes.split())}, ...)" if place.takes else ""
        before = f"; before, `{place.before.replace(':', '.')}`" if place.before else ""
        return f"- wrapped: `{where}{taken}`{before}"
    parts = [place.has.replace(" ", ", ")] if place.has else []
    if place.since:
        parts.append(f"since {place.since}")
    if place.others is not None:
        parts.append("and no field that is not known")
    if place.uses:
        parts.append(f"in this order: {', '.join(place.uses.split())}")
    return f"- relied on: `{where}`: {', '.join(parts)}"


if __name__ == "__main__":
    PAGE.write_text(text(), encoding="utf-8")
