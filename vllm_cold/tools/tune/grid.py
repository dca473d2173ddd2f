# SPDX-License-Identifier: Apache-2.0
"""The settings to try, alpha times beta and presets, and whether problems can be decoded with them.

The method itself checks them, as everywhere else in the package.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import msgspec

from vllm_cold.method.presets import PRESETS, PresetName
from vllm_cold.method.settings import (
    ADAPTIVE,
    DEFAULT_BETA_MAX,
    KNOBS,
    PREFIX,
    ColdError,
    check,
    check_beta_is_used,
    check_together,
    preset_knobs,
    read,
)
from vllm_cold.tools.contrast import (
    adapter_of,
    amateur_reads,
    as_written,
    option_of,
    read_contrast,
    refuse_equal,
)
from vllm_cold.tools.errors import ToolError
from vllm_cold.tools.tune.problems import Problem

# The axes of the grid, with what is tried where nothing else is said.
AXES = {"alpha": "0.05,0.1,0.3", "beta": "0.25,0.5,1"}
Strength = float | Literal["adaptive"]


class Setting(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a request says of the method; None where it says nothing.

    Attributes:
        preset: Values by name.
        alpha: As in ``ColdSettings``, and so are the next three.
        beta: The same.
        beta_max: The same.
        expert_top_k: The same.
        weights: Of the amateurs, where each has its own and beta is not used; one holds for all.
    """

    preset: PresetName | None = None
    alpha: float | None = None
    beta: Strength | None = None
    beta_max: float | None = None
    expert_top_k: int | None = None
    weights: tuple[Strength, ...] = ()

    @property
    def values(self) -> dict[str, Any]:
        """What it says, for JSON: ``Setting(**values)``."""
        return msgspec.to_builtins(self)  # type: ignore[no-any-return]

    @property
    def args(self) -> dict[str, Any]:
        """It as a request's flat arguments."""
        said = self.values
        if self.weights:
            said["weights"] = list(self.weights) if len(self.weights) > 1 else self.weights[0]
        return {PREFIX + name: value for name, value in said.items()}

    @property
    def knobs(self) -> dict[str, Any]:
        """What is in force, those of the preset included, by name."""
        said = {name: value for name, value in self.values.items() if name in KNOBS}
        return {**preset_knobs(self.preset), **said}

    def __str__(self) -> str:
        said: list[str] = [] if self.preset is None else [self.preset]
        for name, value in self.values.items():
            if name == "weights":
                said.append("weights " + ", ".join(map(_text, self.weights)))
            elif name != "preset":
                said.append(f"{name} {_text(value)}")
        return ", ".join(said)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else f"{value:g}"


def _values(name: str, text: str) -> list[Any]:
    """What an option says, each value once and in order, "adaptive" behind the numbers."""
    parts = text.split(",") if name in AXES else [text]
    found = {check(name, read(name, part.strip()), option_of(name)) for part in parts}
    return sorted(found, key=lambda value: (value == ADAPTIVE, value))


def make_grid(
    given: Mapping[str, str | None], presets: str | None = None, weights: Sequence[Strength] = ()
) -> list[Setting]:
    """All pairs of alpha and beta, the mildest first: by beta, then alpha from the largest; then
    the presets, as given. With presets and neither alpha nor beta it is these alone.

    Args:
        given: Texts of options, by the knob's name: those of ``AXES`` are values separated by
            commas, others, such as beta_max, hold for each point that has a use for them.
        presets: Names, separated by commas.
        weights: Of the amateurs, in place of beta.

    Raises:
        ToolError: a value is none or out of range, or beta or ``beta_max`` is given and not used.
    """
    try:
        return _make_grid(given, presets, tuple(weights))
    except ColdError as error:
        raise ToolError(str(error)) from None


def _make_grid(
    given: Mapping[str, str | None], presets: str | None, weights: tuple[Strength, ...]
) -> list[Setting]:
    values = {name: _values(name, text) for name in KNOBS if (text := given.get(name)) is not None}
    if "beta" in values:
        check_beta_is_used("--beta", given["beta"], weights)
    names = presets.split(",") if presets is not None else ()
    points = [{"preset": check("preset", name.strip(), "--preset")} for name in names]
    if not points or values.keys() & AXES:
        axes = {name: values.get(name) or _values(name, text) for name, text in AXES.items()}
        betas = [{"beta": b} for b in axes["beta"]] if not weights else [{}]
        grid = [{"alpha": a, **beta} for beta in betas for a in reversed(axes["alpha"])]
        points = [*grid, *points]
    (most,), (cap,) = (values.get(name, [None]) for name in ("beta_max", "expert_top_k"))
    settings = []
    for point in points:
        beta = preset_knobs(point.get("preset")).get("beta", point.get("beta"))
        adaptive = ADAPTIVE in (weights or (beta,))
        # Said here and now: to a request that does not, a server's own default would apply.
        up_to = (DEFAULT_BETA_MAX if most is None else most) if adaptive else None
        settings.append(Setting(**point, beta_max=up_to, expert_top_k=cap, weights=weights))
    if not any(setting.beta_max is not None for setting in settings):
        check_together("--beta-max", most, given.get("beta") or presets or AXES["beta"])
    return list(dict.fromkeys(settings))


def check_problems(
    grid: Sequence[Setting], expert: str | None, base: str, adapters: Sequence[str], chat: bool
) -> Callable[[Problem], None]:
    """A function that raises for a problem which cannot be decoded with these settings, as far as
    no tokens matter: ValueError for the row's mistake, ToolError for one of the options.

    Args:
        grid: The settings.
        expert: The name of the expert's adapter, None for the base model.
        base: The base model's name.
        adapters: The names of all adapters.
        chat: Whether a text goes through the chat template.
    """
    methods = {setting.preset: setting for setting in grid}.values()

    def check_problem(problem: Problem) -> None:
        try:
            for setting in methods:
                for one in read_contrast({**problem.args, **setting.args}).amateurs:
                    amateur_reads(problem.prompt, one, chat)
                    if one.source is None and adapter_of(one, expert, base, adapters) == expert:
                        refuse_equal(problem.place)
        except ColdError as error:
            if error.field.partition("[")[0] in problem.own_keys:
                raise
            raise ToolError(f"{problem.place}: {as_written(error)}") from None

    return check_problem


def weights_of(setting: Setting) -> tuple[Strength, ...]:
    """The weights that are in force, those of the preset included; none where beta says it."""
    preset = () if setting.preset is None else PRESETS[setting.preset].weights
    return setting.weights or preset
