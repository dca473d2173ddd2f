# SPDX-License-Identifier: Apache-2.0
"""The page of what vllm-cold hooks in vLLM: ``python -m docs.places`` writes it from the table."""

from pathlib import Path

from vllm_cold.compat import places
from vllm_cold.compat.patching import Hook, Place, Relies, Time, Wraps
from vllm_cold.compat.versions import SUPPORTED, numbers

HOOKS = [h for name in (*places.TABLES, places.CPU_TABLE) for h in places.table(name)]
PAGE = Path(__file__).parent / "reference" / "places.md"
_HEAD = """# What it hooks in vLLM

Made from the tables that `vllm_cold/compat/places.py` names, which the plugins, `vllm-cold doctor`
and the tests read, by `python -m docs.places`. Where vLLM lacks a place, contrastive decoding is
unavailable in that engine and says which one it is, or does without as the row says. What would let
most of it go: [for vLLM's maintainers](../for-vllm.md).
"""


# What a server with a text model on one GPU has, whatever it is asked.
ON_A_GPU = (places.START, places.FRONT_END, places.ONLINE, places.CONFIGURED, places.WORKER)


def counts(release: str, *when: Time) -> tuple[int, int]:
    """How many places of a release are wrapped, and how many relied on, at these times or all."""

    def is_of(place: Hook | Place) -> bool:
        return (not place.since or numbers(place.since) <= numbers(release)) and (
            not place.until or numbers(release) < numbers(place.until)
        )

    rows = (hook for hook in HOOKS if is_of(hook) and (not when or hook.when in when))
    of = [isinstance(place, Wraps) for hook in rows for place in hook.places if is_of(place)]
    return sum(of), len(of) - sum(of)


def _counted() -> str:
    lines = [
        "",
        "| vLLM | wrapped / relied on, in all | in a server with a text model on one GPU |",
    ]
    for release in SUPPORTED:
        of_all, of_server = counts(release), counts(release, *ON_A_GPU)
        lines.append(f"| {release} | {of_all[0]} / {of_all[1]} | {of_server[0]} / {of_server[1]} |")
    return "\n".join([*lines[:2], "|---|---|---|", *lines[2:]]) + "\n"


def text() -> str:
    """The page."""
    times = dict.fromkeys(hook.when for hook in HOOKS)
    return _HEAD + _counted() + "\n".join(line for when in times for line in _section(when)) + "\n"


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
