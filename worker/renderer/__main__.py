"""`python -m worker.renderer`: renders rows for the API, whose own process loads neither transformers nor torch.

One JSON request a line on standard input, one JSON answer a line on standard output, in order; ends when standard input
does. A request is {"do": "preview" or "check", …} with the arguments of the function of that name, but
{"base_model": folder, "chat_template": text or null, "own_code": false} for the tokenizer. An answer is {"result": …} or
{"error": {"code", "message"}}: `template_refused`, `model_unreadable`, or `fault`.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable
from functools import lru_cache
from typing import Any

Request = dict[str, Any]


def main() -> int:
    # Libraries print: what they write to standard output goes to standard error, the answers alone to the real one.
    answers = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    os.dup2(2, 1)
    # Everything is local files: no library may ask a model hub.
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "TOKENIZERS_PARALLELISM": "true"}
    from worker.renderer.check import check
    from worker.renderer.preview import preview

    work: dict[str, Callable[..., Any]] = {"preview": preview, "check": check}
    for line in sys.stdin:
        request = json.loads(line)
        answers.write(json.dumps(_answer(work[request.pop("do")], request)) + "\n")
    return 0


def _answer(work: Callable[..., Any], request: Request) -> dict[str, Any]:
    from worker.trainer.data.render import ChatTemplateError
    from worker.trainer.failures import Failure

    try:
        tokenizer = _tokenizer(*(request.pop(name) for name in ("base_model", "chat_template", "own_code")))
        return {"result": work(tokenizer, **request)}
    except ChatTemplateError as error:
        return {"error": {"code": "template_refused", "message": str(error)}}
    except Failure as error:
        return {"error": {"code": error.code, "message": error.message}}
    except Exception as error:
        traceback.print_exc()
        return {"error": {"code": "fault", "message": f"{type(error).__name__}: {error}"}}


@lru_cache(maxsize=4)
def _tokenizer(folder: str, chat_template: str | None, own_code: bool) -> Any:
    """A tokenizer takes a second or so to load, and some tens of megabytes."""
    from worker.trainer.data.tokenizer import load_tokenizer

    return load_tokenizer(folder, chat_template, own_code)


if __name__ == "__main__":
    sys.exit(main())
