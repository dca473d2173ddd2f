# SPDX-License-Identifier: Apache-2.0
"""The settings to try, alpha times beta and presets, checked as everywhere else in the package."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from msgspec import structs

from vllm_cold.method.presets import PRESETS, PresetName
from vllm_cold.method.settings import (
    ADAPTIVE,
    DEFAULT_BETA,
    DEFAULT_BETA_MAX,
    KNOBS,
    PREFIX,
    ColdError,
    ColdSettings,
    check,
    check_beta_is_used,
    check_together,
    read,
)
from vllm_cold.tools.contrast import option_of
from vllm_cold.tools.errors import ToolError

# The axes of the grid, with what is tried where nothing else is said.
ALL = "all"  # presets
AXES = {"alpha": "0.05,0.1,0.3", "beta": "0.25,0.5,1"}


class Setting(ColdSettings, frozen=True):
    """One point to try. Where a setting may be greedy decoding, that is None.

    Attributes:
        preset: Its name, None for a point of the grid.
        weights: Of the amateurs, where each has its own and beta is not used; one holds for all.
    """

    preset: PresetName | None = None
    weights: tuple[float | Literal["adaptive"], ...] = ()

    @property
    def values(self) -> dict[str, Any]:
        """What it is made from, for JSON: ``Setting(**values)``."""
        fields = {name: getattr(self, name) for name in self.__struct_fields__}
        return {name: value for name, value in fields.items() if value not in (None, ())}

    @property
    def args(self) -> dict[str, Any]:
        """It as a request's flat arguments."""
        said = self.values
        if self.weights:
            del said["beta"], said["weights"]
            # Without a preset's own, it is checked that there are as many amateurs.
            if self.preset is None or self.weights != PRESETS[self.preset].weights:
                said["weights"] = list(self.weights) if len(self.weights) > 1 else self.weights[0]
        return {PREFIX + name: value for name, value in said.items()}

    @property
    def strength(self) -> float:
        """The weight that is farthest from 0, without its sign; of an adaptive one the most that it
        reaches.
        """
        most = super().strength
        return max((most if w == ADAPTIVE else abs(w) for w in self.weights), default=most)

    @property
    def is_greedy(self) -> bool:
        """Whether CoLD with it is greedy decoding of the expert (docs/method.md), so that nothing
        needs to be decoded.
        """
        return self.strength == 0.0 or self.alpha == 1.0 or self.expert_top_k == 1

    @property
    def beta_text(self) -> str:
        """Beta in a table."""
        if self.weights:
            return "weights"
        return f"{ADAPTIVE} up to {self.strength:g}" if self.adaptive else f"{self.beta:g}"

    @property
    def weights_text(self) -> str:
        """The weights, an adaptive one with the most that it reaches."""
        most = f"{ADAPTIVE} up to {super().strength:g}"
        return ", ".join(most if w == ADAPTIVE else f"{w:g}" for w in self.weights)

    def __str__(self) -> str:
        beta = f"weights {self.weights_text}" if self.weights else f"beta {self.beta_text}"
        cap = "" if self.expert_top_k is None else f", top-k {self.expert_top_k}"
        text = f"alpha {self.alpha:g}, {beta}{cap}"
        return text if self.preset is None else f"{self.preset} ({text})"


def _values(name: str, text: str) -> list[Any]:
    """What an option says, each value once and in order, "adaptive" behind the numbers."""
    parts = text.split(",") if name in AXES else [text]
    found = {check(name, read(name, part.strip()), option_of(name)) for part in parts}
    return sorted(found, key=lambda value: (value == ADAPTIVE, value))


def make_grid(
    given: Mapping[str, str | None],
    presets: str | None = None,
    weights: Sequence[float | Literal["adaptive"]] = (),
    fitting: Sequence[PresetName] = (),
) -> list[Setting]:
    """All pairs of alpha and beta, by alpha, then beta, each once; then the presets, as given. With
    presets and neither alpha nor beta it is these alone.

    Args:
        given: Texts of options, by the knob's name: those of ``AXES`` are values separated by
            commas, others, such as beta_max, hold for each point that has a use for them.
        presets: Names, separated by commas; or "all", for those of ``fitting`` but for what decodes
            as another point does.
        weights: Of the amateurs, in place of beta.
        fitting: Presets that fit what is contrasted with.

    Raises:
        ToolError: a value is none or out of range, beta or ``beta_max`` is given and not used, or
            no point differs from greedy.
    """
    try:
        return _make_grid(given, presets, tuple(weights), fitting)
    except ColdError as error:
        raise ToolError(str(error)) from None


def _make_grid(
    given: Mapping[str, str | None],
    presets: str | None,
    weights: tuple[Any, ...],
    fitting: Sequence[PresetName],
) -> list[Setting]:
    values = {name: _values(name, text) for name in KNOBS if (text := given.get(name)) is not None}
    if "beta" in values:
        check_beta_is_used("--beta", given["beta"], weights)
    found = list(fitting)
    if presets != ALL:
        names = presets.split(",") if presets is not None else ()
        if len(names) > 1 and ALL in names:
            raise ToolError(f"--preset={presets}: {ALL} stands alone")
        found = [check("preset", name.strip(), "--preset") for name in names]
    points: list[dict[str, Any]] = []
    if not found or values.keys() & AXES:
        axes = {name: values.get(name) or _values(name, text) for name, text in AXES.items()}
        if weights:
            axes["beta"] = [DEFAULT_BETA]
        points += [{"alpha": a, "beta": b} for a in axes["alpha"] for b in axes["beta"]]
    for name in dict.fromkeys(found):
        points.append({"weights": PRESETS[name].weights, **PRESETS[name].knobs, "preset": name})
    (most,), (cap,) = (values.get(name, [None]) for name in ("beta_max", "expert_top_k"))
    for point in points:
        point["expert_top_k"] = cap
        if weights:
            point["weights"] = weights
            point["beta"] = ADAPTIVE if ADAPTIVE in weights else DEFAULT_BETA
            point.pop("beta_max", None)
        if point.get("beta") == ADAPTIVE:
            # Said here and now: outputs that are kept must not change their meaning with a default.
            point.setdefault("beta_max", DEFAULT_BETA_MAX)
            point["beta_max"] = point["beta_max"] if most is None else most
    seen: dict[Setting, Setting] = {}
    for setting in [Setting(**point) for point in points]:
        first = seen.setdefault(structs.replace(setting, preset=None), setting)
        if first is not setting and presets != ALL:
            raise ColdError("--preset", setting.preset, f"decodes as {first} does; leave one out")
    grid = list(seen.values())
    if not any(setting.adaptive for setting in grid):
        check_together("--beta-max", most, given.get("beta") or presets or AXES["beta"])
    if all(setting.is_greedy for setting in grid):
        raise ToolError(
            "every setting is greedy decoding itself (alpha 1, beta 0 or a cap of 1), so there is "
            "nothing to compare; add an alpha below 1 and a beta above 0"
        )
    return grid
