# SPDX-License-Identifier: Apache-2.0
"""A vLLM server that a command sends requests to: its address and key, its models, its errors."""

import ipaddress
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import httpx
import openai
from pydantic import BaseModel, Field, ValidationError

from vllm_cold.compat.versions import vllm_version
from vllm_cold.tools.command_error import ToolError
from vllm_cold.tools.pictures import without_data

_KEY_VARIABLE = "COLD_API_KEY"


class _Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int


class _ReplyMessage(BaseModel):
    content: str | None


class _CompletionChoice(BaseModel):
    finish_reason: str | None
    text: str


class _ChatChoice(BaseModel):
    finish_reason: str | None
    message: _ReplyMessage


class _Reply(BaseModel):
    """What every answer has."""

    choices: Annotated[list[_CompletionChoice | _ChatChoice], Field(min_length=1)]
    usage: _Usage | None = None


class Server:
    """An OpenAI-compatible vLLM server with vllm-cold.

    Args:
        url: The server's address, with or without ``/v1``.
        adapter: The name of the expert on the server, None for the base model.
        model: The base model's name on the server; None for the adapter's parent, or the first
            that is served.
        api_key: None for the environment's ``COLD_API_KEY``, if it is set.
        insecure_http: Whether a key or a password may be sent unencrypted to another machine.
        started: The value of ``--model``, if the command itself has started the server.

    Attributes:
        client: OpenAI's, for one event loop.
        base, expert: The names of the base model and of the expert's adapter.
        root: The address without ``/v1``, name and password.
        where: What errors begin with: the option that names the server.
        title, about: The base model's name and where answers come from, as they are shown.

    Raises:
        ToolError: a key or password would be sent unencrypted; no answer, a name that is not
            served, or no vllm-cold on the server.
    """

    def __init__(
        self,
        url: str,
        adapter: str | None = None,
        model: str | None = None,
        api_key: str | None = None,
        insecure_http: bool | None = None,
        started: str | None = None,
    ) -> None:
        self._url = _without_user(url)
        self.where = f"--url={self._url}" if started is None else f"--model={started!r}"
        root = url.rstrip("/").removesuffix("/v1")
        self.root = _without_user(root)
        self._key = _read_key(api_key)
        options: dict[str, Any] = {
            "base_url": f"{root}/v1",
            "api_key": self._key or "none",
            "max_retries": 0,
            # A server of our own is watched as a process, and all requests may be in its queue.
            "timeout": 600 if started is None else None,
        }
        try:
            target = httpx.URL(url)
            if target.scheme not in ("http", "https") or not target.host:
                raise ValueError(url)
            with without_openai():
                self._client = openai.OpenAI(**options)
                self.client = openai.AsyncOpenAI(**options)
        except (ValueError, httpx.InvalidURL):
            raise ToolError(f"{self.where}: must be like http://localhost:8000") from None
        allowed = target.scheme == "https" or _is_loopback(target.host) or insecure_http
        if (self._key or self._url != url) and not allowed:
            raise ToolError(
                f"{self.where}: a key or password would cross the network unencrypted; use "
                "https://, or --insecure-http to send it anyway"
            )
        parents = self._list_models()
        self.expert = adapter
        loaded = sorted(name for name, parent in parents.items() if parent is not None)
        if adapter is not None and adapter not in loaded:
            names = ", ".join(loaded) or "none"
            raise ToolError(f"--adapter={adapter}: no such adapter on the server (loaded: {names})")
        bases = sorted(parents.keys() - {*loaded})
        first = next((name for name in parents if name in bases), None)
        base = model or (first if adapter is None else parents[adapter])
        if base is None or base not in bases:
            raise ToolError(
                f"--model={base}: no such base model on the server (there are: {', '.join(bases)})"
            )
        self.base = base
        self.title, self.about = base, f"server at {self.root}"
        if started is not None:
            self.title, self.about = Path(started).name, f"vLLM {vllm_version()} on this machine"
        self._require_cold()

    def close(self) -> None:
        self._client.close()

    def _list_models(self) -> dict[str, str | None]:
        """List the models that are served; an adapter has its base model as its parent."""
        with self.errors():
            try:
                reply = json.loads(self._client.models.with_raw_response.list().text)
                return {card["id"]: card.get("parent") for card in reply["data"]}
            except (openai.NotFoundError, json.JSONDecodeError, KeyError, TypeError) as error:
                raise ToolError(
                    f"{self.where}: no vLLM server answers there; give the address of one, like "
                    "http://localhost:8000"
                ) from error

    def _require_cold(self) -> None:
        """Refuse a server without the plugin: it ignores ``cold_*``, where one with it refuses
        alpha -1.
        """
        try:
            with self.errors():
                self._client.completions.create(
                    model=self.expert or self.base,
                    prompt=[0],
                    max_tokens=1,
                    extra_body={"vllm_xargs": {"cold_alpha": -1}},
                )
        except ToolError as error:
            if "cold_alpha=-1" in str(error):
                return
            raise
        raise ToolError(
            f"{self.where}: this server ignores cold_alpha, so vllm-cold is not active there; "
            "install it next to the server's vLLM, and unset COLD_ENABLED=0 if it is set"
        )

    async def post(
        self, client: openai.AsyncOpenAI, path: str, body: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Send a request for an answer; return the reply, whose first choice has a text.

        Raises:
            ToolError: there is none.
        """
        with self.errors():
            reply: Any = await client.post(path, body=body, cast_to=object)
            _Reply.model_validate(reply)
            return dict(reply)

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Turn the client's exceptions into sentences."""
        try:
            yield
        except openai.AuthenticationError as error:
            which = "another" if self._key else "an"
            raise ToolError(f"{self.where}: wants {which} API key; set {_KEY_VARIABLE}") from error
        # The second of a name that no resolver takes.
        except (openai.APIConnectionError, UnicodeError) as error:
            reason = str(error.__cause__ or "") or error
            raise ToolError(
                f"{self.where}: no server answers there ({reason}); start it with vllm serve, "
                "look at its log, or correct the address"
            ) from error
        except openai.APIStatusError as error:
            message = error.body.get("message") if isinstance(error.body, Mapping) else None
            message = without_data(str(message or error.message))
            if self._key:
                message = message.replace(self._key, "...")
            raise ToolError(f"{self.where}: HTTP {error.status_code}: {message}") from error
        except (ValidationError, json.JSONDecodeError) as error:
            wrong = error.errors()[0]["loc"] if isinstance(error, ValidationError) else ()
            what = ".".join(map(str, wrong)) or "JSON"
            raise ToolError(
                f"{self.where}: the server does not return {what} as vLLM does; vLLM 0.23 or "
                "newer is needed, without a proxy that strips fields"
            ) from error


def _is_loopback(host: str) -> bool:
    """Whether a host's name or address stays on this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@contextmanager
def without_openai() -> Iterator[None]:
    """Hide from OpenAI's client what it would take from the environment and send to any address:
    ``OPENAI_API_KEY``, ``OPENAI_ORG_ID``, ``OPENAI_CUSTOM_HEADERS`` and others.
    """
    hidden = {name: os.environ.pop(name) for name in list(os.environ) if name[:7] == "OPENAI_"}
    try:
        yield
    finally:
        os.environ.update(hidden)


def _read_key(api_key: str | None) -> str | None:
    """Return this key, else the environment's; an empty variable has none."""
    key = api_key or os.environ.get(_KEY_VARIABLE) or None
    # The client's error about a key that no header can hold would show it.
    if key is not None and not re.fullmatch(r"[!-~]+", key):
        raise ToolError(
            f"{_KEY_VARIABLE}: an API key has only ASCII characters and no white space; correct it"
        )
    return key


def _without_user(url: str) -> str:
    """Return a URL without a name and password before its host."""
    return re.sub(r"^([a-z]+://)?[^/?#]*@", r"\1", url, flags=re.IGNORECASE)
