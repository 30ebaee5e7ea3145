"""Every table of the service, imported so that the metadata is complete."""

from app.datasets.tables import BlobClaim, Dataset, Report
from app.files.tables import File
from app.jobs.tables import Attempt, Checkpoint, Event, Job, Log, Metric
from app.models.tables import Engine, EngineAdapter, Grant, Model
from app.projects.tables import Answer, Entry, Key, Project, Stored
from app.secrets.tables import Secret
from app.usage.tables import Total, Usage
from app.webhooks.tables import Delivery, Webhook
from app.workers.tables import Worker

TABLES = (
    *(Project, Stored, Key, Answer, Entry, Secret, Usage, Total, File, Report, Dataset, BlobClaim),
    *(Model, Grant, Engine, EngineAdapter, Job, Attempt, Checkpoint, Event, Log, Metric),
    *(Webhook, Delivery, Worker),
)
