"""Asking a language model behind an OpenAI-compatible endpoint.

The package ``openai`` is an extra, and is imported when an endpoint is made.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any
from urllib.parse import SplitResult, urlsplit

from persona_callbacks.errors import InputError, check_whole, is_number

if TYPE_CHECKING:
    import openai
    from openai.types.chat.chat_completion import Choice

_OPENAI = "api.openai.com"


@dataclass(frozen=True)
class Endpoint:
    """A language model that is asked over HTTP: the ``endpoint`` keys of a command.

    Example:
        >>> Endpoint("http://localhost:8000/v1", "my-model", temperature=0.0).model
        'my-model'

    Attributes:
        base_url: address of the server, such as ``http://localhost:8000/v1``. It is kept with the results of a run, so
            that a user name, a password, a query or a fragment in it is refused.
        model: name of the model on that server.
        api_key_variable: environment variable that holds the key; a local server needs none.
        timeout: seconds to wait for an answer.
        retries: further tries, with growing pauses, after a failed connection, a rate limit or a server error.
        temperature: of sampling, for :meth:`complete`.
        max_tokens: greatest length of an answer, for :meth:`complete`.

    Raises:
        InputError: no address of a server, a password or a query in it, no model, no number where there should be
            one, no key for OpenAI's own server, or the package ``openai`` is not installed.
    """

    base_url: str
    model: str
    api_key_variable: str = "OPENAI_API_KEY"
    timeout: float = 120.0
    retries: int = 3
    temperature: float = 1.0
    max_tokens: int = 4096

    def __post_init__(self) -> None:
        """Check the values."""
        address = _address(self.base_url)
        if not self.model:
            raise InputError("endpoint.model: expected the name of a model at the endpoint, found nothing")
        if address.hostname == _OPENAI and not os.environ.get(self.api_key_variable):
            raise InputError(f"endpoint.api_key_variable: the environment variable {self.api_key_variable} is not set")
        for name, least in (("retries", 0), ("max_tokens", 1)):
            check_whole(f"endpoint.{name}", getattr(self, name), least)
        for name, lowest in (("timeout", 0.001), ("temperature", 0.0)):
            if not is_number(getattr(self, name), lowest):
                raise InputError(
                    f"endpoint.{name}: expected a finite number from {lowest:g}, found {getattr(self, name)!r}"
                )
        _openai()

    def complete(self, prompt: str) -> str:
        """The answer to a prompt; it may have been cut short at ``max_tokens``.

        Raises:
            InputError: as for :meth:`ask`.
        """
        return self.ask(prompt, max_tokens=self.max_tokens, temperature=self.temperature).message.content or ""

    def ask(self, prompt: str, wishes: Mapping[str, Any] | None = None, **options: Any) -> "Choice":
        """Send a prompt, and return the first choice of the answer; an empty one if the answer has none.

        Args:
            prompt: the user's message.
            wishes: options that not every server knows: if they are refused, the prompt is sent without them.
            options: of the chat completions API.

        Raises:
            InputError: the endpoint cannot be reached, refuses, or still fails after all retries.
        """
        sdk = _openai()
        create = partial(
            self._client.chat.completions.create,
            model=self.model,
            messages=[{"role": "user", "content": prompt}],
            **options,
        )
        try:
            try:
                answer = create(**(wishes or {}))
            except (sdk.BadRequestError, sdk.UnprocessableEntityError):
                if not wishes:
                    raise
                answer = create()
        # The texts of these errors are left out where they could repeat what was sent, the key among it.
        except sdk.APITimeoutError as error:
            raise InputError(
                f"{self.base_url}: no answer within {self.timeout:g} s; raise endpoint.timeout or check the server"
            ) from error
        except sdk.APIConnectionError as error:
            raise InputError(f"{self.base_url}: cannot be reached; is the server running there?") from error
        except sdk.AuthenticationError as error:
            raise InputError(
                f"{self.base_url}: the key is refused; check the environment variable {self.api_key_variable}"
            ) from error
        except sdk.NotFoundError as error:
            raise InputError(
                f"{self.base_url}: no model {self.model!r} or no /chat/completions there; check endpoint.model, and"
                " that endpoint.base_url ends as the server wants it (often /v1)"
            ) from error
        except sdk.APIStatusError as error:
            raise InputError(
                f"{self.base_url}: the server failed with status {error.status_code} ({self.retries} retries)"
            ) from None
        except sdk.OpenAIError as error:
            raise InputError(f"{self.base_url}: no usable answer ({type(error).__name__})") from None
        if not getattr(answer, "choices", None):
            types = sdk.types.chat
            message = types.ChatCompletionMessage(role="assistant", content="")
            empty: Choice = types.chat_completion.Choice(finish_reason="stop", index=0, message=message)
            return empty
        choice: Choice = answer.choices[0]
        return choice

    @cached_property
    def _client(self) -> "openai.OpenAI":
        client: openai.OpenAI = _openai().OpenAI(
            base_url=self.base_url,
            api_key=os.environ.get(self.api_key_variable) or "none",
            timeout=self.timeout,
            max_retries=self.retries,
        )
        return client


def _address(base_url: object) -> SplitResult:
    """The parts of an address that holds no secret; errors leave the rest of it out.

    Raises:
        InputError: it is none.
    """
    try:
        address = urlsplit(base_url if isinstance(base_url, str) else "")
        host, _ = address.hostname, address.port
    except ValueError:
        host = None
    if not host or address.scheme not in ("http", "https"):
        found = "nothing" if not base_url else "something else (not shown, since it may hold a secret)"
        raise InputError(f"endpoint.base_url: expected an address such as http://localhost:8000/v1, found {found}")
    if address.username is not None or address.password is not None or address.query or address.fragment:
        raise InputError(
            f"endpoint.base_url: expected no user name, password, query or fragment in the address of {host}, since it"
            " is kept with the results; put the key into the environment variable that endpoint.api_key_variable names"
        )
    return address


def _openai() -> Any:
    try:
        import openai
    except ImportError as error:
        raise InputError(
            'asking a model behind an endpoint needs the package openai; pip install "persona-callbacks[openai]"'
        ) from error
    return openai
