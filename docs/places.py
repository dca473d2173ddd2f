# SPDX-License-Identifier: Apache-2.0
"""The page of what vllm-cold hooks in vLLM: ``python -m docs.places`` writes it from the table."""

from pathlib import Path

from vllm_cold.compat import places
from vllm_cold.compat.patching import Dependency, Hook

PAGE = Path(__file__).parent / "reference" / "places.md"
_HEAD = """# What it hooks in vLLM

Made from `vllm_cold/compat/places.py`, which the plugin, `vllm-cold doctor` and the tests read,
by `python -m docs.places`. Where vLLM lacks a place, contrastive decoding is unavailable there and
says which one it is, or does without as the row says. What would let most of it go: [for vLLM's
maintainers](../for-vllm.md).
"""


def text() -> str:
    """The page."""
    times = dict.fromkeys(hook.when for hook in places.TABLE)
    return _HEAD + "\n".join(line for when in times for line in _section(when)) + "\n"


def _section(when: str) -> list[str]:
    rows = [hook for hook in places.TABLE if hook.when == when]
    return ["", f"## {when[0].upper()}{when[1:]}", *(line for row in rows for line in _row(row))]


def _row(hook: Hook) -> list[str]:
    lost = f" Without it: {hook.lost}." if hook.lost else ""
    platform = f" On {hook.platform.upper()} alone." if hook.platform else ""
    return [
        "",
        f"### `{hook.file}`",
        f"{hook.why} Since {hook.since}.{platform}{lost} *Can go*: {hook.can_go}",
        "",
        *map(_dependency, hook.dependencies),
    ]


def _dependency(dependency: Dependency) -> str:
    where = dependency.where.replace(":", ".")
    if dependency.make is not None:
        taken = f"({', '.join(dependency.takes.split())}, ...)" if dependency.takes else ""
        before = f"; before, `{dependency.before.replace(':', '.')}`" if dependency.before else ""
        return f"- wrapped: `{where}{taken}`{before}"
    said = [dependency.has.replace(" ", ", ")] if dependency.has else []
    if dependency.others is not None:
        said.append("and no field that is not known")
    if dependency.uses:
        said.append(f"in this order: {', '.join(dependency.uses.split())}")
    if dependency.like:
        said.append(f"what `{dependency.like.replace(':', '.')}` has")
    return f"- relied on: `{where}`: {', '.join(said)}"


if __name__ == "__main__":
    PAGE.write_text(text(), encoding="utf-8")
