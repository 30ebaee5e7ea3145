"""`python -m worker.renderer`: renders rows for the API, whose own process loads neither transformers nor torch.

One JSON request a line on standard input, one JSON answer a line on standard output, in order; ends when standard input
does. A request is {"do": "preview", "check" or "judge", …} with the arguments of the function of that name, but
{"base_model": folder, "chat_template": text or null, "own_code": false} for the tokenizer. An answer is {"result": …} or
{"error": {"code", "message"}}: `template_refused`, `model_unreadable`, `fault`, or what the trainer fails a job with, which
brings its "hint" and "param" too. Before it comes the line {"loaded": true}, when the tokenizer is loaded and rendering
begins.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator
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
    from worker.renderer.judging import judge
    from worker.renderer.preview import preview

    work: dict[str, Callable[..., Any]] = {"preview": preview, "check": check, "judge": judge}
    for line in sys.stdin:
        request = json.loads(line)
        for answer in _answers(work[request.pop("do")], request):
            answers.write(json.dumps(answer) + "\n")
    return 0


def _answers(work: Callable[..., Any], request: Request) -> Iterator[dict[str, Any]]:
    from worker.trainer.data.render import ChatTemplateError
    from worker.trainer.failures import Failure

    try:
        tokenizer = _tokenizer(*(request.pop(name) for name in ("base_model", "chat_template", "own_code")))
        yield {"loaded": True}
        yield {"result": work(tokenizer, **request)}
    except ChatTemplateError as error:
        yield {"error": {"code": "template_refused", "message": str(error)}}
    except Failure as error:
        yield {"error": {"code": error.code, "message": error.message, "hint": error.hint, "param": error.param}}
    except Exception as error:
        traceback.print_exc()
        yield {"error": {"code": "fault", "message": f"{type(error).__name__}: {error}"}}


@lru_cache(maxsize=4)
def _tokenizer(folder: str, chat_template: str | None, own_code: bool) -> Any:
    """A tokenizer takes a second or so to load, and some tens of megabytes."""
    from worker.trainer.data.tokenizer import load_tokenizer

    return load_tokenizer(folder, chat_template, own_code)


if __name__ == "__main__":
    sys.exit(main())
