# SPDX-License-Identifier: Apache-2.0
"""The order of the demo, and what it prints: at most 45 lines of 80 columns."""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from textwrap import shorten

import psutil
from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.spinner import Spinner

from examples.demo import bound, questions, quiet, speed
from examples.engine import start_llm
from vllm_cold.tools.command_error import ToolError

FOLDER = Path("cold-example")  # as `vllm-cold example` calls it
NEEDED_GIB = 3.0  # an engine and its KV cache
REQUESTS = 8  # with the adapter
TUNE = (
    f"tune {FOLDER}/problems.jsonl --model {FOLDER}/model --enforce-eager --preset cad "
    "--match contains --max-tokens 32"
)


def check_memory(free: int) -> None:
    """Refuse before an engine is started for nothing.

    Args:
        free: Bytes.

    Raises:
        ToolError: there are not enough.
    """
    gib = free / 2**30
    if gib < NEEDED_GIB:
        raise ToolError(
            f"{gib:.1f} GiB of memory are free, and the demo's engine needs {NEEDED_GIB}: close "
            "other programs, or take a machine with more"
        )


def show(console: Console, progress: Callable[[str], None]) -> None:
    """Show everything.

    Raises:
        ToolError: an engine or a command fails.
    """

    def part(title: str, *lines: str) -> None:
        console.print(f"[bold cyan]{title}[/]")
        for line in lines:
            console.print(line)

    progress("making the example; the first time its model is converted, half a minute")
    _run("example", str(FOLDER))
    progress("starting vLLM with the plugin")
    llm = start_llm(str(FOLDER / "model"), **speed.adapter_engine(FOLDER))
    progress("answering questions")
    told, untold = questions.private(), questions.beside()
    questions.answer(llm, [*told, *untold])
    count, case = questions.count, questions.example(told)
    console.print(
        "A [bold]contrast[/] computes each token twice, with a text in the prompt and without, "
        'and favours what the text makes more probable. "cad" is such a method; "regular" decoding '
        "takes the most probable token. Model: SmolLM2-135M, on this CPU."
    )
    part(
        "1. A gain: the text answers",
        "Questions about made-up shops, each behind a text with one fact (with several facts, cad "
        f"gains less). Right answers: regular [bold]{count(told, 'regular')}[/], cad "
        f"[bold]{count(told, 'cad')}[/], regular without the text {count(told, 'alone')}.",
        f"  text     {escape(case.text)}",
        f"  asked    {escape(case.question)}",
        *(
            f"  {name:<9}{'[green]right' if case.right(text) else '[red]wrong'}[/]: "
            + escape(shorten(text, 62, placeholder=" ..."))
            for name, text in (("regular", case.regular), ("cad", case.cad))
        ),
    )
    part(
        "2. A harm: the text does not answer",
        "The same texts before questions for capitals. Right answers: regular "
        f"[bold]{count(untold, 'regular')}[/], cad [bold]{count(untold, 'cad')}[/], regular "
        f"without the text {count(untold, 'alone')}. Use cad where texts answer.",
    )
    progress("attempting to have a secret told")
    attempts, public = bound.answer(llm)
    part(
        "3. A limit: a secret in the system prompt",
        f"Staff codes that the prompt forbids to tell. Told in {attempts.count} attempts: regular "
        f"[bold]{attempts.regular}[/], with at most {bound.BITS} bits of the secret in an answer "
        f'("bound") [bold]{attempts.limited}[/]. Of {public.count} public facts, regular tells '
        f"{public.regular}, bound {public.limited}.",
    )
    progress("measuring with the plugin")
    here, rate = speed.one_batch(llm, contrast=True), speed.adapter_rate(llm, FOLDER, REQUESTS)
    llm.llm_engine.engine_core.shutdown()
    progress("measuring without the plugin")
    there, stock = speed.without_plugin(FOLDER, REQUESTS)
    same = speed.common(here.tokens, there.tokens)
    part(
        "4. A regular and a contrastive request in one batch",
        f"The regular one's tokens: {same} of {len(there.tokens)} as in vLLM without the plugin, "
        f"run just now{'' if same == len(there.tokens) else ' (then rounding parts them)'}. "
        f"Milliseconds a token: [bold]{here.ms:.1f}[/] for either request; without the plugin, "
        f"with both regular, [bold]{there.ms:.1f}[/].",
    )
    part(
        "5. A LoRA adapter on this CPU",
        f"{REQUESTS} requests in one batch, tokens a second: [bold]{rate:.0f}[/] here, "
        f"[bold]{stock:.0f}[/] without the plugin.",
    )
    progress(f"vllm-cold {TUNE}")
    with tempfile.TemporaryDirectory() as answers:
        verdict = _run(*shlex.split(TUNE), "--output", answers)[-1]
    part(
        "6. What to use for 60 example problems: the last line of `vllm-cold tune`",
        "Five passages before each question. Half of the problems choose among cad and prompts "
        "without a contrast, the other (held-out) half judges:",
        f"[bold]{escape(verdict)}[/]",
    )
    console.print("[bold cyan]7. What to type next[/]")
    for what, command in commands():
        console.print(f"# {what}", style="dim", soft_wrap=True)
        console.print(command, markup=False, soft_wrap=True)


def _run(*arguments: str) -> list[str]:
    """Run ``vllm-cold``, and return its lines."""
    command = [str(Path(sys.executable).with_name("vllm-cold")), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 1):  # 1 is a verdict, too
        raise ToolError(f"vllm-cold {arguments[0]} fails:\n{done.stderr.strip()[-2000:]}")
    return done.stdout.splitlines()


def commands() -> list[tuple[str, str]]:
    """What to type next, each with what it does; in short lines for a shell."""
    folder = Path(sys.executable).parent
    if folder.is_relative_to(Path.cwd()):
        folder = folder.relative_to(Path.cwd())
    vllm, cold = (shlex.quote(os.fspath(folder / name)) for name in ("vllm", "vllm-cold"))
    return [
        (
            "a server that contrasts only requests for base:cad, not those for base",
            f"{vllm} serve {FOLDER}/model --served-model-name base \\\n"
            "    --cold-preset cad --enforce-eager --kv-cache-memory-bytes 1G",
        ),
        (
            "such a request, from another terminal",
            "curl localhost:8000/v1/chat/completions -H 'Content-Type: application/json' -d '\n"
            '    {"model": "base:cad", "temperature": 0, "max_tokens": 32, "messages": [\n'
            '    {"role": "tool", "tool_call_id": "0", "content": "The shop opens at 11."},\n'
            '    {"role": "user", "content": "When does the shop open?"}]}\'',
        ),
        (
            f"a verdict on your own problems: replace those in {FOLDER}/problems.jsonl",
            f"{cold} tune {FOLDER}/problems.jsonl \\\n"
            "    --url http://localhost:8000 --preset cad --match contains --max-tokens 32",
        ),
    ]


def main() -> int:
    """Run the demo; returns the exit status."""
    about = "Show what vllm-cold does, on a small model, in about two minutes on two cores."
    argparse.ArgumentParser(prog="python -m examples.demo", description=about).parse_args()
    quiet()
    try:
        check_memory(psutil.virtual_memory().available)
        # On a file of its own, and no print of others in it: while vLLM starts, what it writes is
        # kept off the screen.
        with os.fdopen(os.dup(1), "w") as screen:
            console, spinner = Console(file=screen, highlight=False), Spinner("dots")
            with Live(
                spinner,
                console=console,
                transient=True,
                redirect_stdout=False,
                redirect_stderr=False,
            ):
                show(console, lambda text: spinner.update(text=text))
    except (ToolError, ModuleNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
