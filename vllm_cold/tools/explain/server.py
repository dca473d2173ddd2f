# SPDX-License-Identifier: Apache-2.0
"""The source that asks a running server over HTTP."""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import openai
from pydantic import ValidationError

from vllm_cold.method.settings import ColdSettings
from vllm_cold.tools.errors import ToolError
from vllm_cold.tools.explain.replies import (
    C,
    Card,
    Cards,
    Chat,
    Completion,
    Encoded,
    LookedUp,
    Scored,
    Written,
)
from vllm_cold.tools.explain.sources import EXPERT, MAX_NAMED, Decoded, Description, read_rows
from vllm_cold.tools.explain.trace import Row

DEFAULT_TOP = 20  # vLLM's default for --max-logprobs
WANTED_TOP = 256  # asked for where DEFAULT_TOP is not enough
KEY_VARIABLE = "COLD_API_KEY"
BATCH = 32  # texts in one request; the server works on them side by side

# A server takes what a request leaves out from the model's generation_config.json.
_GREEDY: dict[str, Any] = {
    "temperature": 0.0,
    "top_p": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
}
_GREEDY_EXTRA: dict[str, Any] = {"top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}


class ServerSource:
    """An OpenAI-compatible vLLM server; see ``Source`` for what it can be asked.

    Args:
        url: The server's address, with or without ``/v1``.
        adapter: The name of the expert on the server.
        amateur: The name of another adapter, None for the base model.
        model: The base model's name on the server; None for the adapter's parent.
        api_key: None for the environment's ``COLD_API_KEY``, if there is one.
        insecure_http: Whether a key or a password may be sent unencrypted to another machine.

    Raises:
        ToolError: a key or password would be sent unencrypted; no answer, a name that is not
            served, or no vllm-cold on the server.
    """

    def __init__(
        self,
        url: str,
        adapter: str,
        amateur: str | None = None,
        model: str | None = None,
        api_key: str | None = None,
        insecure_http: bool = False,
    ) -> None:
        self._url = without_user(url)
        if not is_address(url):
            raise ToolError(f"--url={self._url}: must be like http://localhost:8000")
        root = url.rstrip("/").removesuffix("/v1")
        self._key = _read_key(api_key)
        with _without_openai():
            self._client = openai.OpenAI(
                base_url=f"{root}/v1", api_key=self._key or "none", max_retries=0, timeout=600
            )
        if (self._key or self._url != url) and not insecure_http:
            target = self._client.base_url
            if target.scheme != "https" and not _is_loopback(target.host):
                raise ToolError(
                    f"--url={self._url}: a key or password would cross the network unencrypted; "
                    "use https://, or --insecure-http to send it all the same"
                )
        cards = self._list_models()
        parents = {name: card.parent for name, card in cards.items()}
        adapters = sorted(name for name, parent in parents.items() if parent is not None)
        for option, name in (("--adapter", adapter), ("--amateur", amateur)):
            if name is not None and name not in adapters:
                loaded = ", ".join(adapters) or "none"
                raise ToolError(
                    f"{option}={name}: no such adapter on the server (loaded: {loaded})"
                )
        if amateur == adapter:
            raise ToolError(f"--amateur={amateur}: must differ from the expert")
        bases = sorted(name for name, parent in parents.items() if parent is None)
        base = model or parents[adapter]
        if base not in bases:
            raise ToolError(
                f"--model={base}: no such base model on the server (there are: {', '.join(bases)})"
            )
        self._expert, self._amateur, self._base = adapter, amateur, base
        self.max_model_len: int | None = cards[base].max_model_len
        self.vocab_size: int | None = None
        self._largest_top: int | None = None
        self.description = Description(
            model=base,
            adapter=adapter,
            amateur=amateur or "base model",
            source=f"server at {without_user(root)}",
        )
        self._require_cold()

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _list_models(self) -> dict[str, Card]:
        """What the server tells of its models, by their names."""
        with self._errors():
            try:
                reply = self._client.models.with_raw_response.list()
                return {card.id: card for card in Cards.model_validate_json(reply.text).data}
            except (ValidationError, openai.NotFoundError) as error:
                raise ToolError(
                    f"--url={self._url}: what answers there is no vLLM server; give the address "
                    "of one, like http://localhost:8000"
                ) from error

    def _require_cold(self) -> None:
        """A server without the plugin ignores ``cold_*``; one with it refuses alpha -1."""
        try:
            with self._errors():
                self._client.completions.create(
                    model=self._expert,
                    prompt=[0],
                    max_tokens=1,
                    extra_body={"vllm_xargs": {"cold_alpha": -1}},
                )
        except ToolError as error:
            if "cold_alpha=-1" in str(error):
                return
            raise
        raise ToolError(
            f"--url={self._url}: this server ignores cold_alpha, so vllm-cold is not active there; "
            "install it beside the server's vLLM, and unset COLD_ENABLED=0 if it is set"
        )

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """The client's exceptions as sentences."""
        try:
            yield
        except openai.AuthenticationError as error:
            raise ToolError(
                f"--url={self._url}: wants {'another' if self._key else 'an'} API key; set "
                f"{KEY_VARIABLE}, or give --api-key"
            ) from error
        except openai.APITimeoutError as error:
            raise ToolError(f"--url={self._url}: no answer in time") from error
        except openai.APIConnectionError as error:
            reason = error.__cause__ or error
            raise ToolError(
                f"--url={self._url}: no server can be reached there ({reason}); start it with "
                "vllm serve, or correct the address"
            ) from error
        except openai.APIStatusError as error:
            body = error.body
            said = body.get("message") if isinstance(body, Mapping) else None
            said = str(said or error.message)
            if self._key:
                said = said.replace(self._key, "...")
            raise ToolError(f"--url={self._url}: HTTP {error.status_code}: {said}") from error
        except ValidationError as error:
            what = ".".join(map(str, error.errors()[0]["loc"])) or "JSON"
            raise ToolError(
                f"--url={self._url}: the server does not return {what} as vLLM does; vLLM 0.23 or "
                "newer is needed, without a proxy that strips fields"
            ) from error

    def _complete(
        self,
        form: type[Completion[C]],
        model: str,
        prompts: Sequence[Sequence[int]],
        **options: Any,
    ) -> list[C]:
        """The choices of all prompts, in their order."""
        xargs = options.pop("xargs", {"cold": 0})
        extra = {**_GREEDY_EXTRA, **options.pop("extra", {}), "vllm_xargs": xargs}
        choices: list[C] = []
        for start in range(0, len(prompts), BATCH):
            batch = [list(prompt) for prompt in prompts[start : start + BATCH]]
            with self._errors():
                reply = self._client.completions.with_raw_response.create(
                    model=model, prompt=batch, extra_body=extra, **_GREEDY, **options
                )
                found = form.model_validate_json(reply.text).choices
            choices += sorted(found, key=lambda choice: choice.index)
        return choices

    def encode(self, prompts: Sequence[str], chat: bool) -> list[list[int]]:
        """See ``Source``. The server itself tokenizes, for a completion of one token."""
        extra = {"return_token_ids": True, "vllm_xargs": {"cold": 0}}
        found = []
        for prompt in prompts:
            options: dict[str, Any] = {
                "model": self._base, "max_tokens": 1, "temperature": 0.0, "extra_body": extra
            }  # fmt: skip
            read: Chat | Encoded
            with self._errors():
                if chat:
                    message: list[Any] = [{"role": "user", "content": prompt}]
                    chats = self._client.chat.completions.with_raw_response
                    read = Chat.model_validate_json(chats.create(messages=message, **options).text)
                else:
                    reply = self._client.completions.with_raw_response.create(
                        prompt=prompt, **options
                    )
                    read = Completion[Encoded].model_validate_json(reply.text).choices[0]
            found.append(read.prompt_token_ids)
        return found

    def decode(
        self, prompts: Sequence[Sequence[int]], max_tokens: int, settings: ColdSettings | None
    ) -> list[Decoded]:
        """See ``Source``."""
        xargs: dict[str, Any] = {"cold": 0}
        if settings is not None:
            xargs = {
                "cold": 1,
                "cold_alpha": settings.alpha,
                "cold_beta": settings.beta,
                # Without a value of its own a request has the server's cap.
                "cold_expert_top_k": settings.expert_top_k or 2**31 - 1,
            }
            if settings.adaptive:  # the server's default of the most is not this command's
                xargs["cold_beta_max"] = settings.strength
            if self._amateur is not None:
                xargs["cold_amateur"] = self._amateur
        choices = self._complete(
            Completion[Written],
            self._expert,
            prompts,
            max_tokens=max_tokens,
            xargs=xargs,
            extra={"return_token_ids": True},
        )
        return [Decoded(tuple(c.token_ids), c.text, c.finish_reason) for c in choices]

    def score(self, stream: str, texts: Sequence[Sequence[int]], top: int) -> list[list[Row]]:
        """See ``Source``."""
        extra = {"prompt_logprobs": top}
        choices = self._complete(
            Completion[Scored], self._name(stream), texts, max_tokens=1, extra=extra
        )
        return [read_rows(choice.prompt_logprobs) for choice in choices]

    def largest_top(self) -> int:
        """See ``Source``. A server says what its --max-logprobs is if asked for more."""
        if self._largest_top is None:
            self._largest_top = WANTED_TOP
            try:
                self.score(EXPERT, [[0, 0]], WANTED_TOP)
            except ToolError as error:
                limit = re.search(r"greater than max allowed: (\d+)", str(error))
                if limit is None:
                    raise
                self._largest_top = int(limit[1])
        return self._largest_top

    def look_up(
        self, stream: str, asked: Sequence[tuple[Sequence[int], Sequence[int]]]
    ) -> list[Mapping[int, float]]:
        """See ``Source``. One request has the same ids for all of its texts."""
        found: list[Mapping[int, float]] = []
        for texts, ids in pack(asked):
            choices = self._complete(
                Completion[LookedUp],
                self._name(stream),
                texts,
                max_tokens=1,
                logprobs=1,
                extra={"logprob_token_ids": ids, "return_tokens_as_token_ids": True},
            )
            for choice in choices:
                tops = choice.logprobs.top_logprobs
                found.append((tops[0] if tops else None) or {})
        return found

    def _name(self, stream: str) -> str:
        return self._expert if stream == EXPERT else self._amateur or self._base


def is_address(url: str) -> bool:
    """Whether an URL names a server: a scheme, a host, and a port from 0 to 65535 or none."""
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != -1
    except ValueError:  # of urlsplit, or of port
        return False


def _is_loopback(host: str) -> bool:
    """Whether a host's name or address stays on this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _read_key(given: str | None) -> str | None:
    """The key of ``--api-key``, else of the environment; an empty variable holds none."""
    key = os.environ.get(KEY_VARIABLE) or None if given is None else given
    # What cannot stand in a header would be in the client's error.
    if key is not None and not re.fullmatch(r"[!-~]+", key):
        source = KEY_VARIABLE if given is None else "--api-key"
        raise ToolError(
            f"{source}: an API key has ASCII characters, without white space; correct it"
        )
    return key


@contextmanager
def _without_openai() -> Iterator[None]:
    """What OpenAI's client would take from the environment and send to any address, such as
    ``OPENAI_API_KEY``, ``OPENAI_ORG_ID`` and ``OPENAI_CUSTOM_HEADERS``, is out of its sight.
    """
    hidden = {name: os.environ.pop(name) for name in list(os.environ) if name[:7] == "OPENAI_"}
    try:
        yield
    finally:
        os.environ.update(hidden)


def without_user(url: str) -> str:
    """An URL without the name and password that may stand before its host."""
    return re.sub(r"^([a-z]+://)?[^/?#]*@", r"\1", url, flags=re.IGNORECASE)


def pack(
    asked: Sequence[tuple[Sequence[int], Sequence[int]]],
) -> Iterator[tuple[list[Sequence[int]], list[int]]]:
    """Put neighbours together while their ids are at most ``MAX_NAMED`` in all.

    Yields:
        Texts, and the ids that are asked for after each of them.
    """
    texts: list[Sequence[int]] = []
    ids: dict[int, None] = {}
    for text, wanted in asked:
        if texts and (len({*ids, *wanted}) > MAX_NAMED or len(texts) == BATCH):
            yield texts, list(ids)
            texts, ids = [], {}
        texts.append(text)
        ids.update(dict.fromkeys(wanted))
    if texts:
        yield texts, list(ids)
