# SPDX-License-Identifier: Apache-2.0
"""The pictures of the pages: ``python -m docs.pictures`` writes docs/pictures/*.svg.

What they show is computed, not drawn by hand: scores come from the scoring op, the steps of a
contrastive request from vLLM's scheduler as this package extends it, and charts (``charts``) from
what was measured.
"""

from __future__ import annotations

import io
import json
import math
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import torch
from matplotlib.colors import ListedColormap
from matplotlib.patches import FancyBboxPatch, Patch
from rich.console import CONSOLE_SVG_FORMAT, Console
from rich.text import Text

from docs import charts, samples
from vllm_cold.ops import Groups, contrastive_scores

FOLDER = Path(__file__).with_name("pictures")

EXPERT, AMATEUR, SCORE, PLAIN, MUTED = "#3f51b5", "#ef6c00", "#2e7d32", "#78909c", "#cfd8dc"

# A toy vocabulary after "SELECT name FROM": logits by expert and amateur.
WORDS = ("the", "users", "user", "customers", "table", "banana")
E = (3.0, 2.8, 1.5, 1.2, 0.8, -4.0)
A = (3.2, 1.0, 0.8, 0.2, 1.5, -12.0)

STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.fonttype": "none",  # text stays text: small files, and the page's own font
    "font.family": "sans-serif",
    "svg.hashsalt": "vllm-cold",  # the same names of clip paths each time
    "figure.facecolor": "white",
}


def toy_scores(alphas: list[float], betas: list[float]) -> torch.Tensor:
    """Scores [pairs, 6] of the toy vocabulary, one pair for each alpha and beta, by the op."""
    rows = torch.tensor([[0, 1]] * len(alphas))
    weights = -torch.tensor(betas).unsqueeze(1)
    return contrastive_scores(
        torch.tensor([E, A]), Groups(rows, weights, torch.tensor(alphas).log())
    )


def scores() -> Any:
    """Logits of both streams with the threshold; scores with it, and without."""
    figure, axes = plt.subplots(1, 3, figsize=(9.6, 3.0), layout="constrained")
    places = range(len(WORDS))
    height = 0.38

    logits = axes[0]
    logits.barh([y - height / 2 for y in places], E, height, color=EXPERT, label="expert e")
    logits.barh([y + height / 2 for y in places], A, height, color=AMATEUR, label="amateur a")
    threshold = max(E) + math.log(0.1)
    logits.axvline(threshold, color="black", linewidth=1, linestyle="--")
    logits.text(-0.5, 4.1, "threshold: max(e) + ln 0.1", ha="right", fontsize=8)
    logits.set_title("logits of the two streams")
    logits.legend(frameon=False, loc="upper left", bbox_to_anchor=(0, 0.62), fontsize=8)

    for axis, alpha, beta, title in (
        (axes[1], 0.1, 0.5, "scores: alpha 0.1, beta 0.5"),
        (axes[2], 1e-6, 2.0, "scores: alpha 1e-6, beta 2"),
    ):
        (row,) = toy_scores([alpha], [beta]).tolist()
        best = max(places, key=row.__getitem__)
        values = [0.0 if value == -math.inf else value for value in row]
        colours = [SCORE if place == best else MUTED for place in places]
        axis.barh(places, values, 0.6, color=colours)
        for place, value in enumerate(row):
            if value == -math.inf:
                axis.text(0.1, place, "masked", va="center", fontsize=8, color="#546e7a")
        axis.set_title(title)
    for axis in axes:
        axis.set_yticks(places, WORDS)
        axis.invert_yaxis()
        axis.axvline(0, color="black", linewidth=0.6)
    return figure


def settings() -> Any:
    """Which toy token wins, for each alpha and beta."""
    size = 120
    alphas = torch.logspace(-4, 0, size, dtype=torch.float64).tolist()
    betas = torch.linspace(0, 3, size, dtype=torch.float64).tolist()
    pairs = [(alpha, beta) for beta in betas for alpha in alphas]
    winners = toy_scores([a for a, _ in pairs], [b for _, b in pairs]).argmax(1).view(size, size)
    seen = sorted(set(winners.flatten().tolist()))
    colours = ("#9fa8da", "#a5d6a7", "#fff59d", "#ffcc80", "#bcaaa4", "#ef9a9a")
    palette = dict(zip(WORDS, colours, strict=True))
    figure, axis = plt.subplots(figsize=(5.4, 3.0), layout="constrained")
    axis.contourf(
        alphas,
        betas,
        winners.apply_(seen.index).numpy(),
        levels=[index - 0.5 for index in range(len(seen) + 1)],
        cmap=ListedColormap([palette[WORDS[token]] for token in seen]),
    )
    axis.set_xscale("log")
    axis.set_xlabel("alpha")
    axis.set_ylabel("beta")
    axis.plot(0.1, 0.5, "k+", markersize=9)
    axis.annotate("default", (0.1, 0.5), xytext=(5, 5), textcoords="offset points", fontsize=8)
    handles = [Patch(color=palette[WORDS[token]], label=WORDS[token]) for token in seen]
    axis.legend(handles=handles, title="chosen token", frameon=False, loc="center left",
                bbox_to_anchor=(1, 0.5))  # fmt: skip
    return figure


def trace() -> list[dict[str, tuple[int, bool]]]:
    """Tokens of each stream in each step, and whether it samples, by vLLM's scheduler.

    Plain request ``r1`` of the base model is being decoded when contrastive request ``r2`` arrives.
    Its prompt begins with the 20 tokens of ``r1``'s. A step has 16 tokens.
    """
    import tempfile

    from tests.scheduler.harness import Harness, Setup
    from tests.tiny import make_tiny_model

    prompt = list(range(100, 120))
    steps = []
    with tempfile.TemporaryDirectory() as folder:
        harness = Harness(make_tiny_model(Path(folder)), Setup(budget=16, block_size=4))
        harness.add(prompt, max_tokens=12)
        for step in range(10):
            if step == 3:
                harness.add([*prompt, *range(200, 210)], max_tokens=4, adapter=1, cold=True)
            harness.schedule()
            output, result = harness.in_flight[-1]
            sampled = {
                r
                for r, tokens in zip(result.req_ids, result.sampled_token_ids, strict=True)
                if tokens
            }
            counts = output.num_scheduled_tokens.items()
            steps.append({request: (count, request in sampled) for request, count in counts})
            harness.deliver()
    return steps


def steps() -> Any:
    """The streams of one request among the rows of a batch, step by step."""
    traced = trace()
    streams = {"r1": "regular request", "r2": "contrastive: expert", "r2-amateur-1": "its amateur"}
    colours = {"r1": PLAIN, "r2": EXPERT, "r2-amateur-1": AMATEUR}
    figure, axis = plt.subplots(figsize=(9.0, 2.3), layout="constrained")
    for column, step in enumerate(traced):
        for row, request in enumerate(streams):
            if request not in step:
                continue
            count, samples = step[request]
            box = FancyBboxPatch(
                (column + 0.08, row + 0.12), 0.84, 0.76, boxstyle="round,pad=0,rounding_size=0.1",
                facecolor=colours[request] if samples else "white", edgecolor=colours[request],
            )  # fmt: skip
            axis.add_patch(box)
            axis.text(
                column + 0.5, row + 0.5, str(count), ha="center", va="center",
                color="white" if samples else colours[request],
            )  # fmt: skip
    axis.set_xlim(0, len(traced))
    axis.set_ylim(len(streams), 0)
    axis.set_yticks([row + 0.5 for row in range(len(streams))], streams.values())
    axis.set_xticks([i + 0.5 for i in range(len(traced))], [f"{i + 1}" for i in range(len(traced))])
    axis.set_xlabel("step (numbers: tokens computed; filled: a token is sampled)")
    axis.tick_params(length=0)
    for side in ("left", "bottom"):
        axis.spines[side].set_visible(False)
    return figure


def path() -> Any:
    """The way of a request through vLLM's processes."""
    figure, axis = plt.subplots(figsize=(9.6, 2.4), layout="constrained")
    processes = (
        ("front end", PLAIN, ("admission", "checks the request,\nwrites its settings")),
        ("engine core", EXPERT, ("scheduler", "adds the amateur,\ngives both their tokens")),
        ("worker", AMATEUR, ("forward pass", "two rows of one batch:\nexpert and amateur")),
        ("worker", SCORE, ("logits processor", "writes the scores over\nthe expert's row")),
        ("worker", PLAIN, ("sampler", "picks a token, copied\nto the amateur")),
    )
    width, gap = 1.62, 0.33
    for index, (process, colour, (title, text)) in enumerate(processes):
        x = index * (width + gap)
        axis.add_patch(
            FancyBboxPatch(
                (x, 0.55), width, 1.0, boxstyle="round,pad=0,rounding_size=0.06",
                facecolor="white", edgecolor=colour, linewidth=1.6,
            )
        )  # fmt: skip
        axis.text(x + width / 2, 1.36, title, ha="center", va="center", weight="bold")
        axis.text(x + width / 2, 0.93, text, ha="center", va="center", fontsize=8)
        axis.text(x + width / 2, 1.68, process, ha="center", fontsize=8, color="#546e7a")
        if index:
            axis.annotate(
                "", (x, 1.05), (x - gap, 1.05), arrowprops={"arrowstyle": "->", "color": "black"}
            )
    left, right = width * 1.5 + gap, 4 * (width + gap) + width / 2
    axis.annotate(
        "", (left, 0.53), (right, 0.53),
        arrowprops={"arrowstyle": "->", "color": "black", "connectionstyle": "bar,fraction=-0.06"},
    )  # fmt: skip
    axis.text(
        (left + right) / 2, 0.02, "tokens: compared for both in every step; "
        "the amateur's are dropped", ha="center", fontsize=8,
    )  # fmt: skip
    axis.set_xlim(-0.05, 5 * width + 4 * gap + 0.05)
    axis.set_ylim(-0.05, 1.85)
    axis.axis("off")
    return figure


PICTURES: dict[str, Callable[[], Any]] = {
    "scores": scores,
    "settings": settings,
    "steps": steps,
    "path": path,
    **charts.CHARTS,
}


def tune() -> str:
    """What ``vllm-cold tune`` printed in a terminal, as SVG, in a font of the reader's."""
    text = json.loads((samples.FOLDER / "tune.json").read_text(encoding="utf-8"))
    console = Console(record=True, width=samples.WIDTH, file=io.StringIO(), force_terminal=True)
    console.print(Text.from_ansi(text))
    form = re.sub(r"@font-face \{\{.*?\}\}", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)
    return console.export_svg(title="vllm-cold tune", code_format=form, unique_id="tune")


def write(folder: Path) -> list[Path]:
    """Write all pictures as SVG."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, draw in PICTURES.items():
        with plt.rc_context(STYLE):
            figure = draw()
            target = folder / f"{name}.svg"
            figure.savefig(target, metadata={"Date": None, "Creator": None})
            plt.close(figure)
        # matplotlib ends lines with spaces.
        lines = (line.rstrip() for line in target.read_text().splitlines())
        target.write_text("\n".join(lines) + "\n")
        written.append(target)
    (folder / "tune.svg").write_text(tune(), encoding="utf-8")
    return [*written, folder / "tune.svg"]


def main() -> None:
    """Write the pictures where the pages look for them."""
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    for path in write(FOLDER):
        print(path, file=sys.stderr)


if __name__ == "__main__":
    main()
