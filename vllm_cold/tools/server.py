# SPDX-License-Identifier: Apache-2.0
"""A server that a command sends requests to: its address and key, its models, its errors."""

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
_USUAL_KEY_VARIABLE = "OPENAI_API_KEY"


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
    """An OpenAI-compatible server.

    Args:
        url: The server's address, with or without ``/v1``, or with another version and what
            comes behind it.
        adapter: The name of the expert on the server, None for the base model.
        model: The base model's name on the server; None for the adapter's parent, or the first
            that vLLM serves, or the only one.
        api_key: None for the environment's ``COLD_API_KEY``; where that is not set, for
            ``OPENAI_API_KEY``, which goes to OpenAI and to this machine alone.
        insecure_http: Whether a key or a password may be sent unencrypted to another machine.
        started: The value of ``--model``, if the command itself has started the server.
        needs_cold: Whether it must have vllm-cold. If not, it may be no vLLM, and is then sent
            nothing that is not OpenAI's.

    Attributes:
        client: OpenAI's, for one event loop.
        has_cold: Whether vllm-cold is there.
        base, expert: The names of the base model and of the expert's adapter.
        root: The address without ``/v1`` at its end, name and password.
        where: What errors begin with: the option that names the server.
        title, about: The base model's name and where answers come from, as they are shown.

    Raises:
        ToolError: a key or password would be sent unencrypted; no answer, a name that is not
            served, or no vllm-cold on a server that needs it.
    """

    def __init__(
        self,
        url: str,
        adapter: str | None = None,
        model: str | None = None,
        api_key: str | None = None,
        insecure_http: bool | None = None,
        started: str | None = None,
        needs_cold: bool = True,
    ) -> None:
        self._url = _without_user(url)
        self.where = f"--url={self._url}" if started is None else f"--model={started!r}"
        target, base_url = _read_url(url, self.where), url.rstrip("/")
        if not re.search(r"/v\d", target.path):  # as in .../v1, or .../v1beta/openai
            base_url += "/v1"
        self.root = _without_user(base_url.removesuffix("/v1"))
        is_private = target.scheme == "https" or _is_loopback(target.host)
        self._key = _read_key(api_key, may_be_usual=_takes_usual_key(target.scheme, target.host))
        self._max_tokens = "max_tokens"  # what it calls that
        options: dict[str, Any] = {
            "base_url": base_url,
            "api_key": self._key or "none",
            "max_retries": 0,
            # A server of our own is watched as a process, and all requests may be in its queue.
            "timeout": 600 if started is None else None,
        }
        http = openai.DefaultHttpxClient(event_hooks={"request": [_tell_nothing_else]})
        with without_openai():
            self._client = openai.OpenAI(**options, http_client=http)
            self.client = openai.AsyncOpenAI(**options, http_client=http_client())
        if (self._key or self._url != url) and not (is_private or insecure_http):
            raise ToolError(
                f"{self.where}: a key or password would cross the network unencrypted; use "
                "https://, or --insecure-http to send it anyway"
            )
        cards = self._list_models(may_lack=not needs_cold and model is not None)
        is_vllm = needs_cold or any(card.get("owned_by") == "vllm" for card in cards)
        parents: dict[str, str | None] = {card["id"]: card.get("parent") for card in cards}
        self.expert = adapter
        loaded = sorted(name for name, parent in parents.items() if parent is not None)
        if adapter is not None and adapter not in loaded:
            names = ", ".join(loaded) or "none"
            raise ToolError(f"--adapter={adapter}: no such adapter on the server (loaded: {names})")
        bases = sorted(parents.keys() - {*loaded})
        first = next((name for name in parents if name in bases), None)
        if model is None and not is_vllm and len(bases) > 1:
            raise ToolError(f"--model is missing: the server has {', '.join(bases)}")
        base = model or (first if adapter is None else parents[adapter])
        # Others than vLLM also take names that they do not list.
        if base is None or (is_vllm and base not in bases):
            raise ToolError(
                f"--model={base}: no such base model on the server (there are: {', '.join(bases)})"
            )
        self.base = base
        self.title, self.about = base, f"server at {self.root}"
        if started is not None:
            self.title, self.about = Path(started).name, f"vLLM {vllm_version()} on this machine"
        self.has_cold = is_vllm and self._find_cold(needs_cold)
        if needs_cold and not self.has_cold:
            raise ToolError(
                f"{self.where}: this server ignores cold_alpha, so vllm-cold is not active there; "
                "install it next to the server's vLLM, and unset COLD_ENABLED=0 if it is set"
            )

    def close(self) -> None:
        self._client.close()

    def _list_models(self, may_lack: bool) -> list[dict[str, Any]]:
        """List the models that are served, of vLLM an adapter with its base model as its parent;
        ``may_lack`` is whether the server may have no such list.
        """
        with self.errors():
            try:
                reply: Any = self._client.get("/models", cast_to=object)
                return [{**card, "id": str(card["id"])} for card in reply["data"]]
            except (openai.NotFoundError, json.JSONDecodeError, KeyError, TypeError) as error:
                if may_lack:
                    return []
                raise ToolError(
                    f"{self.where}: no OpenAI-compatible server lists its models there; give the "
                    "address of one, like http://localhost:8000"
                ) from error

    def _find_cold(self, needed: bool) -> bool:
        """Look for the plugin: a server without it ignores ``cold_*``, where one with it refuses
        alpha -1; ``needed`` is whether another refusal is an error.
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
                return True
            # A gateway in front of vLLM may know neither this path nor these fields.
            if needed or not re.search(r"HTTP 4(00|04|05|22)\b", str(error)):
                raise
        return False

    async def post(
        self, client: openai.AsyncOpenAI, path: str, body: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Send a request for an answer; return the reply, whose first choice has a text.

        Raises:
            ToolError: there is none.
        """
        with self.errors():
            try:
                reply: Any = await self._post(client, path, body)
            except openai.BadRequestError as error:
                # OpenAI's newer models refuse what all others know.
                if "max_completion_tokens" not in str(error) or "max_tokens" not in body:
                    raise
                self._max_tokens = "max_completion_tokens"
                reply = await self._post(client, path, body)
            _Reply.model_validate(reply)
            return dict(reply)

    async def _post(self, client: openai.AsyncOpenAI, path: str, body: Mapping[str, Any]) -> object:
        sent = {self._max_tokens if key == "max_tokens" else key: body[key] for key in body}
        return await client.post(path, body=sent, cast_to=object)

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


def _read_url(url: str, where: str) -> httpx.URL:
    """Read an address; ToolError, which calls it ``where``, for what is none."""
    try:
        target = httpx.URL(url)
        if target.scheme not in ("http", "https") or not target.host:
            raise ValueError(url)
    except (ValueError, httpx.InvalidURL):
        raise ToolError(f"{where}: must be like http://localhost:8000") from None
    return target


def http_client() -> openai.DefaultAsyncHttpxClient:
    """Make a client for one event loop that tells a server no more than what it is asked."""

    async def tell_nothing_else(request: Any) -> None:
        _tell_nothing_else(request)

    return openai.DefaultAsyncHttpxClient(event_hooks={"request": [tell_nothing_else]})


def _tell_nothing_else(request: Any) -> None:
    """Take out of a request what OpenAI's client tells of the machine: system, Python, versions."""
    for name in [name for name in request.headers if name.startswith("x-stainless-")]:
        del request.headers[name]
    request.headers["User-Agent"] = "vllm-cold"


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


def _takes_usual_key(scheme: str, host: str) -> bool:
    """Whether a server is whom ``OPENAI_API_KEY`` is for, or on this machine."""
    return (scheme, host) == ("https", "api.openai.com") or _is_loopback(host)


def _read_key(api_key: str | None, *, may_be_usual: bool) -> str | None:
    """Return this key, else the environment's; an empty variable has none."""
    name, key = _KEY_VARIABLE, api_key or os.environ.get(_KEY_VARIABLE)
    if key is None and may_be_usual:
        name, key = _USUAL_KEY_VARIABLE, os.environ.get(_USUAL_KEY_VARIABLE)
    # The client's error about a key that no header can hold would show it.
    if key and not re.fullmatch(r"[!-~]+", key):
        raise ToolError(
            f"{name}: an API key has only ASCII characters and no white space; correct it"
        )
    return key or None


def _without_user(url: str) -> str:
    """Return a URL without a name and password before its host."""
    return re.sub(r"^([a-z]+://)?[^/?#]*@", r"\1", url, flags=re.IGNORECASE)
