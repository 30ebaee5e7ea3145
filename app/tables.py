"""Every table of the service, imported so that the metadata is complete."""

from app.datasets.tables import Dataset, Report
from app.files.tables import File
from app.jobs.tables import Attempt, Event, Job, Metric
from app.models.tables import Engine, EngineAdapter, Model
from app.projects.tables import Project

TABLES = (Project, File, Report, Dataset, Model, Engine, EngineAdapter, Job, Attempt, Event, Metric)
