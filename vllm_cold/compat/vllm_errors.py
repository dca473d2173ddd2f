# SPDX-License-Identifier: Apache-2.0
"""How vLLM refuses a request (``vllm.exceptions``) and reports one that failed."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import cast

from vllm_cold.errors import sendable


@contextmanager
def as_http_400() -> Iterator[None]:
    """Turn a ValueError into one of vLLM's, which its server answers with HTTP 400; offline it is a
    ValueError still.
    """
    try:
        yield
    except ValueError as error:
        raise _request_error()(sendable(str(error))) from error


@cache
def _request_error() -> type[Exception]:
    from vllm import exceptions

    # Also where vLLM lacks it: then requests are told why there is no contrastive decoding.
    kind = getattr(exceptions, "VLLMValidationError", ValueError)
    return type("ColdRequestError", tuple(dict.fromkeys((kind, ValueError))), {})


@cache
def generation_error() -> Callable[[str], Exception]:
    """Return the class of the error that vLLM's servers report to the client, streamed or not."""
    from vllm import exceptions

    if (kind := getattr(exceptions, "GenerationError", None)) is not None:
        return cast(Callable[[str], Exception], kind)
    from vllm.entrypoints.openai.engine import protocol  # in 0.23

    return cast(Callable[[str], Exception], protocol.GenerationError)
