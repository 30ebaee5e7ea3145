"""`python -m worker …` is the `celery` command on the service's own Celery app.

Celery's `--app worker.celery_app` would look for a `worker` in the working directory first.
"""

from __future__ import annotations

import sys

from worker.celery_app import celery

if __name__ == "__main__":
    celery.start(sys.argv[1:])
