# SPDX-License-Identifier: Apache-2.0
"""What a server's replies must hold to be of use: one model for each question that is asked.

Other fields may stand there; what is not named here is not read.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Generic, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field

# vLLM's servers send this for -inf, which JSON does not have.
NO_LOGPROB = -9999.0


def _number(value: float) -> float:
    return -math.inf if value <= NO_LOGPROB else value


def _token(name: Any) -> Any:
    return name.removeprefix("token_id:") if isinstance(name, str) else name


_Logprob = Annotated[float, AfterValidator(_number)]
_Token = Annotated[int, BeforeValidator(_token)]


class Chat(BaseModel):
    """A chat: its prompt as the model reads it."""

    prompt_token_ids: list[int]


class Choice(BaseModel):
    """What is said about one of the prompts, counted from 0."""

    index: int


class Encoded(Choice):
    """The prompt as the model reads it."""

    prompt_token_ids: list[int]


class Written(Choice):
    """The answer."""

    text: str
    finish_reason: str
    token_ids: list[int]


class Answered(Written):
    """The answer, and the prompt as the model reads it."""

    prompt_token_ids: list[int]


class Message(BaseModel):
    """An answer in a chat; a server may have taken all of it for something else."""

    content: str | None


class Said(Choice):
    """The answer of a chat."""

    message: Message
    finish_reason: str
    token_ids: list[int]


class Spoken(Chat):
    """A chat with its answer."""

    choices: Annotated[list[Said], Field(min_length=1)]


class Part(BaseModel):
    """A part of a message."""

    content: str | None = None


class Delta(Choice):
    """What is new in an answer: as text, or in a chat as a message."""

    text: str | None = None
    delta: Part | None = None
    finish_reason: str | None = None
    token_ids: list[int] | None = None


class Grown(BaseModel):
    """A part of a streamed answer."""

    choices: list[Delta]


class Entry(BaseModel):
    """One token of a distribution."""

    logprob: _Logprob
    decoded_token: str | None = None


class Scored(Choice):
    """The distributions at the prompt's tokens, None at the first."""

    prompt_logprobs: list[dict[_Token, Entry] | None]


class Named(BaseModel):
    """ln-probabilities at the answer's tokens."""

    top_logprobs: list[dict[_Token, _Logprob] | None]


class LookedUp(Choice):
    """The tokens that were asked for by id."""

    logprobs: Named


C = TypeVar("C", bound=Choice)


class Completion(BaseModel, Generic[C]):
    """A completion of one or more prompts."""

    choices: Annotated[list[C], Field(min_length=1)]
