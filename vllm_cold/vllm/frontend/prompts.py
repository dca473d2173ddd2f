# SPDX-License-Identifier: Apache-2.0
"""Touches vLLM: ``BaseRenderer.render_cmpl`` and ``render_chat``, with ``_async`` and without.

Why: an amateur's prompt becomes token ids as its expert's did: with the same chat template, tools,
template arguments and tokenizer's arguments, and what it does without is left out of what the
expert reads. Only here are these together, for ``LLM.generate``, ``LLM.chat`` and all endpoints of
a server; so what vLLM makes of a prompt carries along how it was made (``Recipe``). An amateur's
own is made later, where the request's parameters are known, by the same methods: off the event
loop where vLLM renders so.
Since: 0.23 to 0.33. Can go: when vLLM shows extensions a request before it is rendered.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from vllm_cold.method.amateurs import Messages, Part, Source, Text, Tokens, Without
from vllm_cold.method.settings import ColdError
from vllm_cold.vllm.frontend.config import is_configured
from vllm_cold.vllm.patching import Place

_KEY = "cold_recipe"  # in what vLLM makes of a prompt


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a prompt was made.

    Attributes:
        prompt: The text or ids of a completion; None if it was neither.
        messages: The conversation of a chat; None for a completion.
        tok_params: vLLM's TokenizeParams; None for its default.
        chat_params: vLLM's ChatParams; None for a completion.
        prepared: What admission found out about the request before it arrived there.
        server: vLLM's OnlineRenderer, which has the template's arguments of chats; None offline.
    """

    prompt: str | list[int] | None = None
    messages: list[Any] | None = None
    tok_params: Any = None
    chat_params: Any = None
    prepared: Any = None
    server: Any = None


def recipe_of(prompt: Any) -> Recipe:
    """How a prompt was made, or would be."""
    if isinstance(prompt, dict):
        found = prompt.get(_KEY)
        return found if isinstance(found, Recipe) else Recipe(_text_or_ids(prompt))
    return Recipe(prompt if isinstance(prompt, (str, list)) else None)


def is_tokens(prompt: Any) -> bool:
    """Whether it is what vLLM made of a prompt of text: its token ids."""
    return isinstance(prompt, dict) and prompt.get("type") == "token"


def with_prepared(prompt: dict[str, Any], prepared: Any) -> dict[str, Any]:
    """What vLLM made of a prompt, with what was found out about this request."""
    return {**prompt, _KEY: replace(recipe_of(prompt), prepared=prepared)}


def _text_or_ids(prompt: Mapping[str, Any]) -> str | list[int] | None:
    # Of a prompt with both, vLLM reads the ids.
    ids = prompt.get("prompt_token_ids")
    return prompt.get("prompt") if ids is None else list(ids)


def _note(made: Iterable[Any], recipes: Iterable[Recipe]) -> None:
    for one, recipe in zip(made, recipes, strict=True):
        one[_KEY] = recipe


def _completions(prompts: Sequence[Any], tok_params: Any) -> list[Recipe]:
    return [
        Recipe(_text_or_ids(p) if isinstance(p, dict) else None, tok_params=tok_params)
        for p in prompts
    ]


def _chats(conversations: Sequence[list[Any]], chat_params: Any, tok_params: Any) -> list[Recipe]:
    for message in (m for conversation in conversations for m in conversation):
        # What pydantic gives for a list can be read once.
        if isinstance(message, dict) and not isinstance(
            content := message.get("content"), (str, list, type(None))
        ):
            message["content"] = list(content)
    return [
        Recipe(messages=list(c), tok_params=tok_params, chat_params=chat_params)
        for c in conversations
    ]


def _make_cmpl(original: Callable[..., Any]) -> Callable[..., Any]:
    def render_cmpl(
        self: Any, prompts: Any, tok_params: Any = None, *args: Any, **kwargs: Any
    ) -> Any:
        if not is_configured(self.config):
            return original(self, prompts, tok_params, *args, **kwargs)
        recipes = _completions(prompts, tok_params)
        made = original(self, prompts, tok_params, *args, **kwargs)
        _note(made, recipes)
        return made

    return render_cmpl


def _make_cmpl_async(original: Callable[..., Any]) -> Callable[..., Any]:
    async def render_cmpl_async(
        self: Any, prompts: Any, tok_params: Any = None, *args: Any, **kwargs: Any
    ) -> Any:
        if not is_configured(self.config):
            return await original(self, prompts, tok_params, *args, **kwargs)
        recipes = _completions(prompts, tok_params)
        made = await original(self, prompts, tok_params, *args, **kwargs)
        _note(made, recipes)
        return made

    return render_cmpl_async


def _make_chat(original: Callable[..., Any]) -> Callable[..., Any]:
    def render_chat(
        self: Any, conversations: Any, chat_params: Any, tok_params: Any = None, *args: Any,
        **kwargs: Any,
    ) -> Any:  # fmt: skip
        if not is_configured(self.config):
            return original(self, conversations, chat_params, tok_params, *args, **kwargs)
        recipes = _chats(conversations, chat_params, tok_params)
        found = original(self, conversations, chat_params, tok_params, *args, **kwargs)
        _note(found[1], recipes)
        return found

    return render_chat


def _make_chat_async(original: Callable[..., Any]) -> Callable[..., Any]:
    async def render_chat_async(
        self: Any, conversations: Any, chat_params: Any, tok_params: Any = None, *args: Any,
        **kwargs: Any,
    ) -> Any:  # fmt: skip
        if not is_configured(self.config):
            return await original(self, conversations, chat_params, tok_params, *args, **kwargs)
        recipes = _chats(conversations, chat_params, tok_params)
        found = await original(self, conversations, chat_params, tok_params, *args, **kwargs)
        _note(found[1], recipes)
        return found

    return render_chat_async


_CMPL = ("prompts", "tok_params")
_CHAT = ("conversations", "chat_params", "tok_params")
_BASE = "vllm.renderers.base:BaseRenderer."
PLACES = (
    Place(_BASE + "render_cmpl", _make_cmpl, _CMPL),
    Place(_BASE + "render_cmpl_async", _make_cmpl_async, _CMPL),
    Place(_BASE + "render_chat", _make_chat, _CHAT),
    Place(_BASE + "render_chat_async", _make_chat_async, _CHAT),
)


@dataclass(frozen=True, slots=True)
class Order:
    """A prompt to be made.

    Attributes:
        field: What an error names.
        source: What the amateur reads; None for the expert's prompt, for which nothing is made.
    """

    field: str
    source: Source | None

    def refused(self, problem: str) -> ColdError:
        """The error that says what is wrong with it."""
        return ColdError(self.field, self.source and self.source.value, problem)

    @contextmanager
    def refusing(self) -> Iterator[None]:
        """Whatever a chat template raises is an error of the request."""
        try:
            yield
        except ColdError:
            raise
        except Exception as error:
            said = str(error) or type(error).__name__
            raise self.refused(f"no prompt can be made of it: {said}") from error


def render(processor: Any, recipe: Recipe, orders: Sequence[Order]) -> list[list[int] | None]:
    """The token ids of amateurs' prompts.

    Args:
        processor: What has vLLM's renderer.
        recipe: How the expert's prompt was made.
        orders: What to make.

    Raises:
        ColdError: one cannot be made.
    """
    renderer = processor.renderer
    made: list[list[int] | None] = []
    for order in orders:
        if (same := _made_before(order, orders, len(made))) is not None:
            made.append(made[same])
            continue
        with order.refusing():
            call = _call(renderer, recipe, order)
            found = call and getattr(renderer, call[0])(*call[1:])
        made.append(_ids(renderer, order, found))
    return made


async def render_async(
    processor: Any, recipe: Recipe, orders: Sequence[Order]
) -> list[list[int] | None]:
    """As ``render``, without blocking the event loop."""
    renderer = processor.renderer
    made: list[list[int] | None] = []
    for order in orders:
        if (same := _made_before(order, orders, len(made))) is not None:
            made.append(made[same])
            continue
        with order.refusing():
            call = _call(renderer, recipe, order)
            found = call and await getattr(renderer, call[0] + "_async")(*call[1:])
        made.append(_ids(renderer, order, found))
    return made


def _made_before(order: Order, orders: Sequence[Order], num_made: int) -> int | None:
    """Which of the prompts that are made already is this one; None if none is."""
    return next((i for i in range(num_made) if orders[i].source == order.source), None)


def _call(renderer: Any, recipe: Recipe, order: Order) -> tuple[Any, ...] | None:
    """The renderer's method that makes a prompt, and its arguments; None for the expert's."""
    tok_params = recipe.tok_params
    match source := order.source:
        case None:
            return None
        case Part():
            own: Any = recipe.prompt  # text or ids
            prompt: Any = source.of(order.field, own)
        case Text():
            prompt = source.value
            if recipe.chat_params is not None and tok_params is not None:
                # A template brings the special tokens along, a text does not.
                tok_params = replace(tok_params, add_special_tokens=True)
        case Tokens():
            prompt = source.value
        case Messages() | Without():
            messages = messages_of(recipe, order)
            if recipe.chat_params is not None:
                return "render_chat", [messages], recipe.chat_params, tok_params
            if tok_params is not None:
                tok_params = replace(tok_params, add_special_tokens=False)
            return (
                "render_chat",
                [messages],
                default_chat_params(renderer, recipe.server),
                tok_params,
            )
    key = "prompt" if isinstance(prompt, str) else "prompt_token_ids"
    return "render_cmpl", [{key: prompt}], tok_params


def messages_of(recipe: Recipe, order: Order) -> list[Any]:
    """What an amateur of a chat reads.

    Raises:
        ColdError: it cannot be had of this request.
    """
    source = order.source
    if isinstance(source, Messages):
        return list(source.value)
    assert isinstance(source, Without)
    return source.of(order.field, recipe.messages)


def default_chat_params(renderer: Any, server: Any = None) -> Any:
    """As for a chat that says nothing about its template, offline or on a server."""
    from transformers import PreTrainedTokenizerBase
    from vllm.renderers.params import ChatParams

    # Mistral's own tokenizers give ids only, and vLLM makes them of a text otherwise.
    ids = not isinstance(renderer.tokenizer, PreTrainedTokenizerBase)
    kwargs = {"add_generation_prompt": True, "continue_final_message": False, "tokenize": ids}
    if server is None:
        return ChatParams(chat_template_kwargs=kwargs)
    return ChatParams(
        chat_template=server.chat_template,
        chat_template_content_format=server.chat_template_content_format,
        chat_template_kwargs=kwargs,
    ).with_defaults(server.default_chat_template_kwargs)


def _ids(renderer: Any, order: Order, made: Any) -> list[int] | None:
    """The token ids of what a renderer made, None for nothing."""
    if made is None:
        return None
    if isinstance(made, tuple):  # of a chat
        made = made[1]
    (one,) = made
    if one.get("type") != "token":
        raise order.refused("must be text only")
    ids: list[int] = one["prompt_token_ids"]
    if not ids:
        raise order.refused("is no token at all; it must not be empty")
    if max(ids) >= (size := renderer.model_config.get_vocab_size()):
        raise order.refused(f"token {max(ids)} is none of the model's {size}")
    return ids
