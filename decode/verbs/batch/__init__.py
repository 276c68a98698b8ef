"""batch: many movies to tables, whatever happens to one of them."""

from __future__ import annotations

from decode.verbs.batch.execution import Batch, Event, batch
from decode.verbs.batch.job import Job, Options, load_job
from decode.verbs.batch.plan import JobError, Plan, Task, plan
from decode.verbs.batch.receipt import Row
from decode.verbs.batch.slurm import slurm_script
from decode.verbs.batch.summary import summary_files

__all__ = [
    "Batch",
    "Event",
    "Job",
    "JobError",
    "Options",
    "Plan",
    "Row",
    "Task",
    "batch",
    "load_job",
    "plan",
    "slurm_script",
    "summary_files",
]
