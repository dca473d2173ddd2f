# SPDX-License-Identifier: Apache-2.0
"""An engine in the tool's own process, that leaves the screen to the tool."""

from __future__ import annotations

import contextlib
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from vllm_cold.method.amateurs import AmateurSpec, Messages
from vllm_cold.method.settings import DEFAULT_BETA
from vllm_cold.tools.contrast import Content, Contrast, Stream, media_in
from vllm_cold.tools.errors import ToolError
from vllm_cold.tools.pictures import as_sent, without_data

# Arguments of vllm.LLM and of vllm serve alike.
ENGINE_OPTIONS: dict[str, Any] = {
    "dtype": {"help": "(default: the model's)"},
    "max_model_len": {"type": int, "help": "(default: the model's)"},
    "max_num_seqs": {"type": int, "help": "a CoLD request counts twice or more"},
    "gpu_memory_utilization": {"type": float},
    "tensor_parallel_size": {"type": int},
    "enforce_eager": {
        "action": "store_true",
        "default": None,
        "help": "do not compile the model",
    },
}
_SPACE = (
    "change --gpu-memory-utilization, or on a CPU set VLLM_CPU_KVCACHE_SPACE to the GiB that the "
    "KV cache may have, such as 4"
)
_TERSE = (AssertionError, ImportError, KeyError)  # their texts are no sentences


def prepare_environment(verbose: bool = False) -> None:
    """Before vLLM is imported: only its errors on the screen, and the engine in this process, so
    that its errors arrive as exceptions and nothing is left behind by a kill.
    """
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if not verbose:
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        warnings.filterwarnings("ignore")


@contextlib.contextmanager
def _silence(verbose: bool) -> Iterator[None]:
    """Keep what libraries print past Python (such as Gloo) off the screen, unless it fails."""
    if verbose:
        yield
        return
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


def start_llm(model: str, verbose: bool = False, **engine: Any) -> Any:
    """Start ``vllm.LLM``; with ``verbose`` it may print.

    Raises:
        ToolError: vLLM is not installed, or refuses the model or the arguments.
    """
    try:
        with _silence(verbose):
            from vllm import LLM

            return LLM(model=model, disable_log_stats=True, use_tqdm_on_load=verbose, **engine)
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
        raise ToolError(f"--model={model!r}: the engine does not start: {reason}") from error


def _chat(llm: Any) -> tuple[Any, Any, Any]:
    """The renderer, and how it makes prompts of chats here: ChatParams and TokenizeParams."""
    from vllm_cold.vllm.frontend.rendering import default_chat_params

    renderer = llm.llm_engine.input_processor.renderer
    chat_params = replace(default_chat_params(renderer), chat_template=llm.chat_template)
    # Too long a prompt is the command's to refuse, which knows the options to name.
    tok_params = replace(
        renderer.default_chat_tok_params, add_special_tokens=False, max_total_tokens=None
    )
    return renderer, chat_params, tok_params


def prompt_maker(llm: Any) -> Callable[[str, Content], list[int]]:
    """A function that makes token ids of what a stream reads, as vLLM does for a request; of an
    image they have the placeholder. It raises ColdError for what a template or tokenizer does not
    take.
    """
    from vllm_cold.patching import at_once
    from vllm_cold.vllm.frontend.prompts import PromptSource
    from vllm_cold.vllm.frontend.rendering import render

    renderer, chat_params, tok_params = _chat(llm)
    prompt_source = PromptSource(chat_params=chat_params, tok_params=tok_params)

    def make(field: str, reads: Content) -> list[int]:
        if (media := media_in(reads)) is not None:
            found: list[int] = _media_prompt(llm, field, media)["prompt_token_ids"]
            return found
        one = AmateurSpec(field, field, source=reads)
        (prompt,) = at_once(render(renderer, prompt_source, [one], offline=True))
        assert prompt is not None and prompt.ids is not None
        return prompt.ids

    return make


def _media_prompt(llm: Any, field: str, media: Messages) -> dict[str, Any]:
    from vllm_cold.vllm.frontend.rendering import media_prompt

    renderer, *params = _chat(llm)
    return media_prompt(renderer, field, as_sent(media.value), *params)


def engine_prompt(llm: Any, stream: Stream) -> dict[str, Any]:
    """What a stream reads, as ``LLM.generate`` takes it; ColdError for media that the model does
    not take.
    """
    if stream.media is None:
        return {"prompt_token_ids": list(stream.ids)}
    made = _media_prompt(llm, "prompt", stream.media)
    return {**made, "prompt_token_ids": [*made["prompt_token_ids"], *stream.answer]}


def cold_params(
    llm: Any,
    contrast: Contrast,
    streams: Sequence[Stream],
    adapters: Mapping[str, Any],
    **sampling: Any,
) -> Any:
    """``ColdParams`` of a prompt whose amateurs read what their streams do.

    Args:
        llm: A ``vllm.LLM``.
        contrast: The prompt's.
        streams: As ``make_streams`` gives them.
        adapters: A ``LoRARequest`` for each adapter, by its name.
        sampling: Fields of ``SamplingParams``.
    """
    from vllm_cold.params import Amateur, ColdParams

    settings, (expert, *others) = contrast.settings, streams

    def prompt(stream: Stream) -> Any:
        if (stream.ids, stream.media) == (expert.ids, expert.media):
            return None
        return list(stream.ids) if stream.media is None else engine_prompt(llm, stream)

    return ColdParams(
        alpha=settings.alpha,
        beta=settings.beta if any(each is None for each in contrast.weights) else DEFAULT_BETA,
        rule_parameters=settings.rule_parameters,
        expert_top_k=settings.expert_top_k,
        amateurs=[
            Amateur(
                prompt=prompt(stream),
                lora_request=None if stream.adapter is None else adapters[stream.adapter],
                weight=weight,
            )
            for stream, weight in zip(others, contrast.weights, strict=True)
        ],
        **sampling,
    )


@contextlib.contextmanager
def engine_errors() -> Iterator[None]:
    """What ends an engine while it decodes, such as NaN in logits or no memory, as a ToolError."""
    from vllm.v1.engine.exceptions import EngineDeadError

    try:
        yield
    except (RuntimeError, MemoryError, EngineDeadError) as error:
        raise ToolError(
            f"the engine failed while it decoded ({type(error).__name__}): {_one_sentence(error)}"
        ) from error


def _one_sentence(error: BaseException) -> str:
    """An error's message, one line; that of pydantic without its type names and links."""
    from pydantic import ValidationError  # comes with vLLM

    if not isinstance(error, ValidationError):
        return " ".join(without_data(str(error)).split())
    found = error.errors(include_url=False, include_context=False)
    parts = (f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in found)
    return "; ".join(part.removeprefix(": ").removeprefix("Value error, ") for part in parts)
