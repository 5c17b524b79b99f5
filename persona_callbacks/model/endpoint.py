"""Asking a language model behind an OpenAI-compatible endpoint."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any
from urllib.parse import urlsplit

import openai
from openai.types.chat import ChatCompletionMessage
from openai.types.chat.chat_completion import Choice

from persona_callbacks.errors import InputError

_OPENAI = "api.openai.com"


@dataclass(frozen=True)
class Endpoint:
    """Where to ask, and how: the ``endpoint`` keys of a command.

    Attributes:
        base_url: such as ``http://localhost:8000/v1``.
        model: name of the model there.
        api_key_variable: environment variable that holds the key; servers of one's own need none.
        timeout: seconds to wait for an answer.
        retries: further tries, with growing pauses, after a failed connection, a rate limit or a server's error.
        temperature: of sampling.
        max_tokens: length of an answer.
    """

    base_url: str
    model: str
    api_key_variable: str = "OPENAI_API_KEY"
    timeout: float = 120.0
    retries: int = 3
    temperature: float = 1.0
    max_tokens: int = 4096

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            InputError: no address of a server, no model, or no key for OpenAI's own.
        """
        address = urlsplit(self.base_url or "")
        if address.scheme not in ("http", "https") or not address.hostname:
            raise InputError(
                f"endpoint.base_url: expected an address such as http://localhost:8000/v1, found {self.base_url!r}"
            )
        if not self.model:
            raise InputError("endpoint.model: expected the name of a model at the endpoint, found nothing")
        if address.hostname == _OPENAI and not os.environ.get(self.api_key_variable):
            raise InputError(f"endpoint.api_key_variable: the environment variable {self.api_key_variable} is not set")

    def complete(self, prompt: str) -> str:
        """The answer to a prompt; it may have been cut short at ``max_tokens``.

        Raises:
            InputError: as for :meth:`ask`.
        """
        return self.ask(prompt, max_tokens=self.max_tokens, temperature=self.temperature).message.content or ""

    def ask(self, prompt: str, wishes: Mapping[str, Any] | None = None, **options: Any) -> Choice:
        """Send a prompt with options of the chat completions API; the first choice, an empty one if there is none.

        ``wishes`` are options that not every server knows: if they are refused, the prompt is sent without them.

        Raises:
            InputError: the endpoint cannot be reached, refuses, or goes on failing after all retries.
        """
        create = partial(
            self._client.chat.completions.create,
            model=self.model,
            messages=[{"role": "user", "content": prompt}],
            **options,
        )
        try:
            try:
                answer = create(**(wishes or {}))
            except (openai.BadRequestError, openai.UnprocessableEntityError):
                if not wishes:
                    raise
                answer = create()
        # The texts of these errors are left out where they could repeat what was sent, the key among it.
        except openai.APITimeoutError as error:
            raise InputError(
                f"{self.base_url}: no answer within {self.timeout:g} s; raise endpoint.timeout or check the server"
            ) from error
        except openai.APIConnectionError as error:
            raise InputError(f"{self.base_url}: cannot be reached; is the server running there?") from error
        except openai.AuthenticationError as error:
            raise InputError(
                f"{self.base_url}: the key is refused; check the environment variable {self.api_key_variable}"
            ) from error
        except openai.NotFoundError as error:
            raise InputError(
                f"{self.base_url}: no model {self.model!r} or no /chat/completions there; check endpoint.model, and"
                " that endpoint.base_url ends as the server wants it (often /v1)"
            ) from error
        except openai.APIStatusError as error:
            raise InputError(
                f"{self.base_url}: the server failed with status {error.status_code} ({self.retries} retries)"
            ) from None
        except openai.OpenAIError as error:
            raise InputError(f"{self.base_url}: no usable answer ({type(error).__name__})") from None
        if not getattr(answer, "choices", None):
            return Choice(finish_reason="stop", index=0, message=ChatCompletionMessage(role="assistant", content=""))
        return answer.choices[0]

    @cached_property
    def _client(self) -> openai.OpenAI:
        return openai.OpenAI(
            base_url=self.base_url,
            api_key=os.environ.get(self.api_key_variable) or "none",
            timeout=self.timeout,
            max_retries=self.retries,
        )
