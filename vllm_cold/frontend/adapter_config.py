# SPDX-License-Identifier: Apache-2.0
"""What ``adapter_config.json`` says about an adapter's rank. Plain Python without vLLM."""

import json
import os
from typing import Annotated

import msgspec

NAME = "adapter_config.json"
_REMEDY = "give the folder that peft's save_pretrained wrote"
_Rank = Annotated[int, msgspec.Meta(ge=1)]


class _Config(msgspec.Struct):
    r: _Rank
    rank_pattern: dict[str, _Rank] | None = None


def read_rank(folder: str) -> int:
    """Read the rank from an adapter's folder.

    Args:
        folder: The folder, as the file system knows it: a ``~`` is not expanded.

    Returns:
        What vLLM compares with ``max_lora_rank``: the largest of ``r`` and the ranks of
        ``rank_pattern``, as in ``PEFTHelper.validate_legal``. (vLLMs that do not know
        ``rank_pattern`` look at ``r`` alone, and then fail in the worker at a larger one.)

    Raises:
        ValueError: the file is missing or unreadable, or names no rank; says why.
    """
    path = os.path.join(folder, NAME)
    if not os.path.isfile(path):  # to open a pipe would wait for its other end
        raise ValueError(f"no {NAME} in {folder} that is a regular file; {_REMEDY}")
    try:
        with open(path, encoding="utf-8") as file:
            config = msgspec.convert(json.load(file), _Config)
    except msgspec.ValidationError as error:
        raise ValueError(f"{path}: {error}; {_REMEDY}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read as JSON ({error}); {_REMEDY}") from None
    return max([config.r, *(config.rank_pattern or {}).values()])
