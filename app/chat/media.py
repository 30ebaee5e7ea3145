"""Media in messages: only what the request itself brings.

An engine would fetch a URL from inside the operator's network, for whoever asks.
"""

from __future__ import annotations

from typing import Any

from app.kit.errors import InvalidValue


def refuse_urls(messages: Any) -> None:
    """Raises `InvalidValue` where the content of a message has media by URL, or media that an earlier request left behind.

    vLLM fetches what stands under `image_url`, `audio_url` and `video_url`, as text or as an object's `url`, in parts of
    any type. So each such value, however deep, must be a `data:` URL. A part's `uuid` stands for media in a cache that
    all projects share.
    """
    if not isinstance(messages, list):  # the engine refuses it
        return
    contents = [
        (f"messages.{number}.content", message.get("content"))
        for number, message in enumerate(messages)
        if isinstance(message, dict)
    ]
    # A stack: a request may nest more deeply than Python recurses.
    while contents:
        place, value = contents.pop()
        if isinstance(value, list):
            contents.extend((f"{place}.{number}", each) for number, each in enumerate(value))
        elif isinstance(value, dict):
            for name, each in value.items():
                _check(f"{place}.{name}", name, each)
                contents.append((f"{place}.{name}", each))


def _check(place: str, name: str, value: Any) -> None:
    if name == "uuid" and value is not None:
        raise InvalidValue(
            f"The field '{place}' is not supported: media come with each request.",
            param=place,
            hint="Leave 'uuid' out, and send the media as a data: URL.",
        )
    if (name == "url" or name.endswith("_url")) and isinstance(value, str) and value[:5].lower() != "data:":
        raise InvalidValue(
            f"The field '{place}' is '{value[:80]}': the service fetches no URLs.",
            param=place,
            hint="Send the media itself as a data: URL: data:image/png;base64,…",
        )
