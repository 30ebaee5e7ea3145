"""vLLM's prefix cache, kept apart by project: how fast an answer comes must not say what another project asked."""

from __future__ import annotations

from typing import Any

from app.kit import sealing
from app.kit.errors import InvalidValue


def cache_salt(project_id: str, given: Any) -> str:
    """The salt of a project's requests. `given` is a client's own `cache_salt`, which divides the project's cache further.

    Requests share cached prefixes only under the same salt. It depends on a secret, so nobody can compute another
    project's. Raises `InvalidValue` where `given` isn't text.
    """
    if given is not None and not isinstance(given, str):
        raise InvalidValue(
            "The field 'cache_salt' has a wrong value: text is expected.",
            param="cache_salt",
            hint="Leave it out: projects never share a cache.",
        )
    return sealing.derive("cache_salt", project_id, given or "")
