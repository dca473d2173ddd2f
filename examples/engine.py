# SPDX-License-Identifier: Apache-2.0
"""An engine in a program's own process, that leaves the screen to the program."""

from __future__ import annotations

import contextlib
import os
import tempfile
import warnings
from collections.abc import Iterator
from typing import Any

from vllm_cold.tools.command_error import ToolError

_SPACE = "set VLLM_CPU_KVCACHE_SPACE to the GiB that the KV cache may have, such as 4"
_TERSE = (AssertionError, ImportError, KeyError)  # their texts are no sentences


def prepare_environment() -> None:
    """Before vLLM is imported: only its errors on the screen, and the engine in this process, so
    that its errors arrive as exceptions and nothing is left behind by a kill.
    """
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    warnings.filterwarnings("ignore")


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Keep what libraries print past Python (such as Gloo) off the screen, unless it fails."""
    with tempfile.TemporaryFile() as kept:
        saved = [os.dup(1), os.dup(2)]
        try:
            os.dup2(kept.fileno(), 1)
            os.dup2(kept.fileno(), 2)
            yield
        except KeyboardInterrupt:
            raise
        except BaseException:
            kept.seek(0)
            os.write(saved[1], kept.read())
            raise
        finally:
            for target, source in enumerate(saved, 1):
                os.dup2(source, target)
                os.close(source)


def start_llm(model: str, **engine: Any) -> Any:
    """Start ``vllm.LLM``.

    Raises:
        ToolError: vLLM is not installed, or refuses the model or the arguments.
    """
    try:
        with _silence():
            from vllm import LLM

            return LLM(model=model, disable_log_stats=True, use_tqdm_on_load=False, **engine)
    except ModuleNotFoundError as error:
        raise ToolError(
            f"this command runs vLLM, and {error.name} is not installed: install vLLM"
        ) from error
    except (ValueError, OSError, TypeError, RuntimeError, *_TERSE) as error:
        reason = _one_sentence(error)
        if isinstance(error, _TERSE):
            reason = f"{type(error).__name__}: {reason}".removesuffix(": ")
        if "memory utilization" in reason or "requested memory for kv" in reason:
            reason += f" ({_SPACE})"
        raise ToolError(f"{model}: the engine does not start: {reason}") from error


def _one_sentence(error: BaseException) -> str:
    """An error's message, one line; that of pydantic without its type names and links."""
    from pydantic import ValidationError  # comes with vLLM

    if not isinstance(error, ValidationError):
        return " ".join(str(error).split())
    found = error.errors(include_url=False, include_context=False)
    parts = (f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in found)
    return "; ".join(part.removeprefix(": ").removeprefix("Value error, ") for part in parts)
