# SPDX-License-Identifier: Apache-2.0
"""How a request's flat arguments describe its amateurs. Imports no vLLM."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import msgspec

from vllm_cold.errors import ColdError
from vllm_cold.settings.arguments import ColdArgs
from vllm_cold.settings.presets import Preset
from vllm_cold.settings.source_readers import READERS, pick_source
from vllm_cold.settings.sources import Source
from vllm_cold.settings.table import MAX_AMATEURS, PREFIX, ColdSettings


class AmateurSpec(msgspec.Struct):
    """An amateur as a request describes it.

    Attributes:
        field: What an error about it names.
        prompt_field: What an error about its prompt names.
        adapter: The name of its adapter in the request, None where it has none.
        source: What it reads, None for the expert's prompt.
        weight: As in the request, None for what beta says.
        lora: Its adapter (vLLM's LoRARequest), None for the base model; admission fills it in.
        lenient: Whether a default says what it does not read, which is for all chats: it is enough
            that a conversation has one of what is left out.
    """

    field: str
    prompt_field: str
    adapter: str | None = None
    source: Source | None = None
    weight: float | str | None = None
    lora: Any = None
    lenient: bool = False

    def refused(self, problem: str, kind: type[ColdError] = ColdError) -> ColdError:
        """Return the error that says what is wrong with its prompt, or why there is none."""
        return kind(self.prompt_field, self.source and self.source.value, problem)


@dataclass(frozen=True, slots=True)
class ContrastSpec:
    """A contrast as a request describes it.

    Attributes:
        settings: The method's settings.
        amateurs: One or more.
        weights: Theirs; None where the rule chooses them.
    """

    settings: ColdSettings
    amateurs: tuple[AmateurSpec, ...]
    weights: tuple[float | None, ...]


class Omission(NamedTuple):
    """A value that a default has for what an amateur's prompt lacks."""

    whose: str  # the preset's name, or "the engine"
    name: str
    value: Any


def names_contrast(args: ColdArgs) -> bool:
    """Whether a request itself says what it is contrasted with."""
    return any(name in args.values for name in ("amateur", *READERS))


def default_omission(args: ColdArgs, engine: ColdArgs) -> Omission | None:
    """Return what an engine's default, or a preset, leaves out of an amateur's prompt; None if
    nothing, or if the request itself says what it is contrasted with.
    """
    preset, name = args.preset, args.values.get("preset", "")
    if names_contrast(args) or (name and not (preset.own_prompt or preset.limits)):
        return None
    if not name and engine.preset.images is not None:
        return Omission("the engine", "images", engine.preset.images)
    if preset.images is not None:
        # A method about images: what an engine leaves out of chats would make another of it.
        return Omission(name, "images", preset.images)
    if isinstance(preset.without, tuple):  # one for each of its amateurs
        return Omission(name, "without", list(preset.without))
    if (without := engine.values.get("without")) is not None:
        return Omission("the engine", "without", without)
    return None if preset.without is None else Omission(name, "without", preset.without)


def describe(args: ColdArgs) -> tuple[AmateurSpec, ...]:
    """Describe the amateurs of a request; those with the same values share one ``source``.

    Raises:
        ColdError: values do not fit together.
    """
    preset = args.preset
    by_name, number = count_amateurs(args)
    amateurs = []
    sources: dict[tuple[str, str], Source] = {}
    for i in range(number):
        values = _values_of(args, None if by_name is None else i)
        field, adapter = values.get("amateur", ("cold_amateur", None))
        if adapter == "":
            raise ColdError(field, adapter, "must be the name of a loaded adapter")
        prompt_field, source = "cold_amateur_prompt", None
        if (choice := pick_source(values, READERS)) is not None:
            name, prompt_field, value = choice
            key = name, str(value)
            if key not in sources:
                sources[key] = READERS[name](prompt_field, value)
            source = sources[key]
        _, weight = values.get("weights", ("", None))
        if weight is None and i < len(preset.weights):
            weight = preset.weights[i]
        amateurs.append(AmateurSpec(field, prompt_field, adapter, source, weight))
    remedy = "what each reads in cold_without or cold_part"
    check_preset(
        ("cold_preset", args.values.get("preset")),
        preset,
        [amateur.source for amateur in amateurs],
        "say which with cold_without, cold_part, cold_images, cold_amateur_prompt or "
        "cold_amateur_messages",
        f": list {remedy if preset.own_prompt else 'their adapters in cold_amateur'}",
    )
    return tuple(amateurs)


def check_preset(
    setting: tuple[str, object],
    preset: Preset,
    sources: Sequence[Source | None],
    with_prompts: str,
    with_several: str,
) -> None:
    """Refuse a method that needs other amateurs than those that read ``sources``.

    Args:
        setting: What an error names: the field and its value.
        preset: The method.
        sources: What its amateurs read.
        with_prompts: The remedy: how to say what they read.
        with_several: The remedy: how to say which they are.
    """
    if preset.own_prompt and None in sources:
        raise ColdError(*setting, f"contrasts with another prompt; {with_prompts}")
    are_same = preset.own_prompt and all(source == sources[0] for source in sources)
    if preset.weights and (are_same or len(sources) != len(preset.weights)):
        raise ColdError(*setting, f"is for {len(preset.weights)} amateurs{with_several}")


def count_amateurs(args: ColdArgs) -> tuple[str | None, int]:
    """Return which value decides how many amateurs a request has, if one does, and their number.
    Lists are counted; nothing in them is read.

    Raises:
        ColdError: two disagree, or it has none or too many.
    """
    preset = args.preset
    lengths = {name: len(value) for name, value in args.values.items() if isinstance(value, list)}
    # Lists of these two alone are one amateur's.
    names = [n for n in ("weights", *lengths) if n in lengths.keys() - {"without", "part"}]
    if not names and preset.weights and preset.own_prompt:
        names, lengths["preset"] = ["preset"], len(preset.weights)
    if not names:
        return None, 1
    first, number = names[0], lengths[names[0]]
    if not 1 <= number <= MAX_AMATEURS:
        problem = f"has {number} entries; a request has 1 to {MAX_AMATEURS} amateurs"
        raise ColdError(PREFIX + first, args.values[first], problem)
    for name, length in lengths.items():
        if length != number:
            raise ColdError(
                PREFIX + name,
                args.values[name],
                f"has {length} entries, and {PREFIX}{first} has {number}: lists have one for each "
                "amateur",
            )
    return first, number


def _values_of(args: ColdArgs, i: int | None) -> dict[str, tuple[str, Any]]:
    """Return the values of amateur ``i``, by name, each with what errors call it. ``i`` is None for
    the only one, whose values may be lists.
    """
    values = {}
    for name, value in args.values.items():
        field = PREFIX + name
        if i is not None and isinstance(value, list):
            field, value = f"{field}[{i}]", value[i]
            if value == "":
                continue
        values[name] = field, value
    return values
