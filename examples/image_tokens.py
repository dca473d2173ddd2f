# SPDX-License-Identifier: Apache-2.0
"""Classifier-free guidance of a model that writes images, or audio, token by token.

``python -m examples.image_tokens [--guidance 3] [--width 16] [--height 8]`` makes a tiny random
model whose vocabulary is half text and half image, as of Emu3, LlamaGen or Janus; draws a picture
with a prompt and a negative one, on stock vLLM with vllm-cold; does the same in a naive loop with
transformers; and prints both, which must be equal, token for token.

These models' guidance is ``negative + guidance * (positive - negative)``, in logits or log
probabilities alike. CoLD's formula is ``(1 + beta) * expert - beta * amateur``. They are one, with
the positive prompt as expert, the negative one as amateur and ``beta = guidance - 1``; alpha=0
leaves the mask out, which papers on guidance do not have. So a guidance of 3 is a beta of 2, and of
1 (beta 0) none at all.

A picture is rows of ``width`` image tokens with an end-of-row token after each: only image tokens
are allowed within a row, and the end of row is not asked for but put there. The model reads its own
rows again from the prefix cache, so a row costs no more than its tokens. For a real model, set
``Picture`` to its vocabulary, and the prompts to what its processor makes of two texts.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm_cold.tools.doctor import tiny

Row = Callable[[list[int], list[int], int], list[int]]
"""Draws a row of so many tokens after a positive and a negative prompt."""


@dataclass(frozen=True)
class Picture:
    """The part of a vocabulary that pictures are made of.

    Attributes:
        first: The first of the image tokens; they are in a row.
        end_of_row: After them.
    """

    first: int = tiny.VOCAB_SIZE // 2
    end_of_row: int = tiny.VOCAB_SIZE - 1

    @property
    def tokens(self) -> list[int]:
        """The image tokens."""
        return list(range(self.first, self.end_of_row))


PICTURE = Picture()


def draw(
    row: Row, positive: Sequence[int], negative: Sequence[int], width: int, height: int
) -> list[list[int]]:
    """A picture's tokens, [height][width], row by row."""
    rows: list[list[int]] = []
    drawn: list[int] = []
    for _ in range(height):
        rows.append(row([*positive, *drawn], [*negative, *drawn], width))
        drawn += [*rows[-1], PICTURE.end_of_row]
    return rows


def in_vllm(llm: Any, guidance: float) -> Row:
    """A row by vLLM: one request, whose positive prompt is contrasted with the negative one."""
    from vllm_cold import Amateur, ColdParams

    def row(positive: list[int], negative: list[int], width: int) -> list[int]:
        params = ColdParams(
            alpha=0.0,
            beta=guidance - 1.0,
            amateur=Amateur(prompt=negative),
            allowed_token_ids=PICTURE.tokens,
            temperature=0.0,  # a picture is sampled, as with temperature=1.0, top_k=2048, seed=1
            max_tokens=width,
            ignore_eos=True,
        )
        (output,) = llm.generate({"prompt_token_ids": positive}, params, use_tqdm=False)
        return list(output.outputs[0].token_ids)

    return row


def naive(model: Any, guidance: float) -> Row:
    """A row by two forward passes a token, of the whole sequences."""
    import torch

    @torch.inference_mode()
    def row(positive: list[int], negative: list[int], width: int) -> list[int]:
        found: list[int] = []
        for _ in range(width):
            with_prompt, without = (
                model(torch.tensor([[*prompt, *found]])).logits[0, -1, PICTURE.tokens]
                for prompt in (positive, negative)
            )
            scores = without + guidance * (with_prompt - without)
            found.append(PICTURE.first + int(scores.argmax()))
        return found

    return row


def show(rows: Sequence[Sequence[int]]) -> str:
    """A picture in grey."""
    shades = " .:-=+*#%@"
    each = len(PICTURE.tokens) / len(shades)
    return "\n".join(
        "".join(shades[int((token - PICTURE.first) / each)] * 2 for token in row) for row in rows
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--guidance", type=float, default=3.0, help="mostly 3 to 7 (3)")
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--height", type=int, default=8)
    options = parser.parse_args(arguments)
    positive, negative = [2, 17, 101, 34, 76], [2, 200, 58]  # tokens of two texts

    from transformers import AutoModelForCausalLM
    from vllm import LLM

    with tempfile.TemporaryDirectory() as folder:
        tiny.write_model(Path(folder), tiny.SIZES, seed=1)
        size = options.width, options.height
        model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
        expected = draw(naive(model, options.guidance), positive, negative, *size)
        unguided = draw(naive(model, 1.0), positive, negative, *size)
        llm = LLM(
            folder,
            dtype="float32",
            max_model_len=512,
            skip_tokenizer_init=True,
            gpu_memory_utilization=0.2,  # of a CPU's memory, too
            enforce_eager=True,
            additional_config={"cold": True},  # without adapters, CoLD is asked for
        )
        found = draw(in_vllm(llm, options.guidance), positive, negative, *size)
    print(show(found))
    same = sum(a == b for a, b in zip(sum(found, []), sum(expected, []), strict=True))
    other = sum(a != b for a, b in zip(sum(found, []), sum(unguided, []), strict=True))
    print(f"guidance {options.guidance:g} is beta={options.guidance - 1:g}, alpha=0")
    print(f"{same} of {options.width * options.height} tokens equal the naive loop's")
    print(f"{other} differ from those without guidance")
    if found != expected:
        raise SystemExit("not the naive loop's picture")


if __name__ == "__main__":
    main()
