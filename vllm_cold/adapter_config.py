# SPDX-License-Identifier: Apache-2.0
"""What ``adapter_config.json`` says about an adapter's rank. Plain Python without vLLM."""

from __future__ import annotations

import json
import os
import reprlib
import stat
from functools import lru_cache

NAME = "adapter_config.json"
_REMEDY = "give the folder that peft's save_pretrained wrote"


class AdapterConfigError(ValueError):
    """An adapter's folder has no usable ``adapter_config.json``; the message says why."""


def read_rank(folder: str) -> int:
    """Read the rank from an adapter's folder, again only if the file has changed.

    Args:
        folder: The folder, as the file system knows it: a ``~`` is not expanded.

    Returns:
        What vLLM compares with ``max_lora_rank``: the largest of ``r`` and the ranks of
        ``rank_pattern``, as in ``PEFTHelper.validate_legal``. (vLLMs that do not know
        ``rank_pattern`` look at ``r`` alone, and then fail in the worker at a larger one.)

    Raises:
        AdapterConfigError: the file is missing or unreadable, or names no rank.
    """
    path = os.path.join(folder, NAME)
    try:
        found = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        raise AdapterConfigError(f"no {NAME} in {folder}; {_REMEDY}") from None
    except (OSError, ValueError) as error:  # ValueError: a name with a null character
        raise AdapterConfigError(f"{path!r} cannot be read ({error}); {_REMEDY}") from None
    if not stat.S_ISREG(found.st_mode):  # to open a pipe would wait for its other end
        raise AdapterConfigError(f"{path} is not a regular file; {_REMEDY}")
    return _read(os.path.abspath(path), found.st_mtime_ns, found.st_size, found.st_ino)


@lru_cache(maxsize=1024)
def _read(path: str, mtime_ns: int, size: int, inode: int) -> int:
    """Read a file; what it looked like is part of the cache's key. Errors are not kept."""
    try:
        with open(path, encoding="utf-8") as file:
            fields = json.load(file)
    except OSError as error:
        raise AdapterConfigError(f"{path} cannot be read ({error.strerror}); {_REMEDY}") from None
    except UnicodeDecodeError as error:
        raise AdapterConfigError(f"{path} is no UTF-8 text ({error}); {_REMEDY}") from None
    except (ValueError, RecursionError) as error:
        raise AdapterConfigError(f"{path} is no JSON ({error}); {_REMEDY}") from None
    if not isinstance(fields, dict):
        raise AdapterConfigError(f"{path} holds no JSON object; {_REMEDY}")
    if "r" not in fields:
        raise AdapterConfigError(f"{path} names no rank, r; {_REMEDY}")
    pattern = fields.get("rank_pattern") or {}  # as vLLM does
    if not isinstance(pattern, dict):
        shown = reprlib.repr(pattern)
        raise AdapterConfigError(f"{path}: rank_pattern={shown}: must be an object of ranks")
    ranks = {"r": fields["r"]} | {f"rank_pattern[{key!r}]": r for key, r in pattern.items()}
    for name, rank in ranks.items():
        if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
            shown = reprlib.repr(rank)
            raise AdapterConfigError(f"{path}: {name}={shown}: must be an integer >= 1")
    return int(max(ranks.values()))
