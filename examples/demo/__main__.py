# SPDX-License-Identifier: Apache-2.0
"""The order of the demo."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.live import Live
from rich.spinner import Spinner

from examples.demo import ADAPTERS, adapted, documents, instructions, page, quiet
from examples.engine import start_llm
from vllm_cold.tools.adapters import engine_arguments, read_adapters
from vllm_cold.tools.command_error import ToolError

FOLDER = Path("results")
NEEDED_GIB = 3.0  # an engine and its KV cache
ENGINE: dict[str, Any] = {
    "dtype": "bfloat16",
    "max_model_len": 1024,
    "max_num_seqs": 64,
    "enforce_eager": True,
}


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
        ToolError: an engine does not start.
        ModuleNotFoundError: the model's package is not installed.
    """
    from examples.smollm2 import model_path

    progress("looking for the model; the first time it is converted, half a minute")
    model = str(model_path())
    progress("starting vLLM")
    adapters = read_adapters(None, [str(ADAPTERS / name) for name in adapted.PROMPTS])
    llm = start_llm(model, **engine_arguments(adapters), **ENGINE)

    progress("answering documents")
    shown, counted = documents.picked(), documents.held_out()
    documents.answer(llm, [*shown, *counted])
    heading(console, "1. A gain: documents that contradict what the model remembers")
    console.print(documents.table(shown, counted), documents.note(shown, counted))

    progress("answering documents that are about something else")
    beside, others = documents.picked_beside(), documents.held_out_beside()
    documents.answer(llm, [*beside, *others])
    heading(console, "2. A harm, by the same contrast: documents that do not answer")
    console.print(documents.table(beside, others), documents.note_beside(others))

    progress("answering under instructions")
    told = instructions.held_out()
    heading(console, "3. Instructions: what is followed, and what that costs")
    console.print(instructions.table(told, instructions.answer(llm, told)))
    console.print(instructions.note(told[0]))

    progress("answering with adapters")
    items = adapted.items()
    adapted.answer(llm, items)
    heading(console, "4. LoRA adapters, against the model without them")
    console.print(adapted.table(items, llm.get_tokenizer()), adapted.NOTE)

    progress("writing the page")
    FOLDER.mkdir(exist_ok=True)
    page.write_page(llm, Path(model).name, shown[0], FOLDER / "demo.html")
    llm.llm_engine.engine_core.shutdown()
    heading(console, "5. The first two answers, token by token")
    console.print(f"{FOLDER / 'demo.html'}: open it in a browser")

    page.write_prompts(shown, FOLDER / "demo.jsonl")
    page.write_request(shown[0], FOLDER / "demo.json")
    heading(console, "6. What to type next")
    for what, command in page.commands(model, FOLDER / "demo.jsonl", FOLDER / "demo.json"):
        console.print(f"# {what}", style="dim", soft_wrap=True)
        console.print(command, markup=False, soft_wrap=True)


def heading(console: Console, text: str) -> None:
    """Begin a part."""
    console.print(f"\n[bold cyan]{text}[/]")


def main() -> int:
    """Run the demo; returns the exit status."""
    about = "Show what vllm-cold does, on a small model, on this machine; takes one to two minutes."
    argparse.ArgumentParser(prog="python -m examples.demo", description=about).parse_args()
    quiet()
    os.environ.setdefault("TQDM_DISABLE", "1")  # libraries' bars, while the model is converted
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
