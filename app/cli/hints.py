"""The service's hints name HTTP requests; users of the command are shown the command that does the same."""

from __future__ import annotations

import re
from functools import partial

# What a hint may say, and the command for it. `{…}` is an id or a name, and goes to the same place of the command.
COMMANDS = {
    "GET /datasets": "burnish datasets list",
    "POST /datasets": "burnish datasets add",
    "GET /datasets/{id}": "burnish datasets show {id}",
    "POST /datasets/{id}/check": "burnish datasets check {id}",
    "POST /datasets/{id}/preview": "burnish datasets preview {id}",
    "DELETE /datasets/{id}": "burnish datasets delete {id}",
    "GET /reports/{id}": "burnish datasets report {id}",
    "GET /reports/{id}/rows": "burnish datasets report {id} --rows",
    "GET /reports/{id}/repaired": "burnish datasets report {id} --repaired FILE",
    "GET /models": "burnish models list",
    "GET /v1/models": "burnish models list",
    "GET /models?kind=reward": "burnish models list --kind reward",
    "POST /models": "burnish models add",
    "GET /models/{name}": "burnish models show {name}",
    "DELETE /models/{name}": "burnish models delete {name}",
    "GET /jobs": "burnish jobs list",
    "POST /jobs": "burnish jobs create",
    "GET /jobs/{id}": "burnish jobs show {id}",
    "GET /jobs/{id}/events": "burnish jobs events {id}",
    "GET /jobs/{id}/logs": "burnish jobs logs {id}",
    "GET /jobs/{id}/metrics": "burnish jobs metrics {id}",
    "GET /jobs/{id}/checkpoints": "burnish jobs checkpoints {id}",
    "POST /jobs/{id}/cancel": "burnish jobs cancel {id}",
    "POST /jobs/{id}/pause": "burnish jobs pause {id}",
    "POST /jobs/{id}/resume": "burnish jobs resume {id}",
    "POST /jobs/{id}/retry": "burnish jobs retry {id}",
    "DELETE /jobs/{id}": "burnish jobs delete {id}",
    "GET /projects": "burnish projects list",
    "POST /projects": "burnish projects create",
    "PATCH /projects/{name}": "burnish projects limits {name}",
    "DELETE /projects/{name}": "burnish projects delete {name}",
    "GET /keys": "burnish keys list",
    "POST /keys": "burnish keys create",
    "PATCH /keys/{id}": "burnish keys limits {id}",
    "DELETE /keys/{id}": "burnish keys revoke {id}",
    "GET /secrets": "burnish secrets list",
    "PUT /secrets/{name}": "burnish secrets set {name}",
    "DELETE /secrets/{name}": "burnish secrets delete {name}",
    "GET /webhooks": "burnish webhooks list",
    'PATCH /webhooks/{id} {"enabled": true}': "burnish webhooks enable {id}",
    "POST /webhooks/{id}/rotate": "burnish webhooks rotate {id}",
    "GET /webhooks/{id}/deliveries": "burnish webhooks deliveries {id}",
    "GET /workers": "burnish workers",
    "GET /usage": "burnish usage",
    "GET /audit": "burnish audit",
}
# What a command says in place of a sentence about requests.
SENTENCES = {"Send Authorization: Bearer <key>, or X-API-Key.": "Put your key into the variable BURNISH_API_KEY."}

# An id, a name, or a placeholder. A stop or a comma after it belongs to the sentence.
_NAME = r"(\{\w+\}|[\w-]+(?:\.[\w-]+)*)"
_END = r"(?![\w/?{-])(?!\.\w)"


def _pattern(request: str) -> re.Pattern[str]:
    parts = re.split(r"(?<=/)\{\w+\}", request)
    return re.compile(r"\b" + _NAME.join(re.escape(part) for part in parts) + _END)


# The longest first: a request may begin as another one does.
_REQUESTS = [(_pattern(request), COMMANDS[request]) for request in sorted(COMMANDS, key=len, reverse=True)]


def in_commands(text: str) -> str:
    """The text with commands in place of HTTP requests. A placeholder such as `{id}` becomes `ID`."""
    for sentence, other in SENTENCES.items():
        text = text.replace(sentence, other)
    for pattern, command in _REQUESTS:
        text = pattern.sub(partial(_command, command), text)
    return text


def _command(command: str, found: re.Match[str]) -> str:
    for name in found.groups():
        shown = name[1:-1].upper() if re.fullmatch(r"\{\w+\}", name) else name
        command = re.sub(r"\{\w+\}", shown.replace("\\", r"\\"), command, count=1)
    return f"`{command}`"
