"""A job on a cluster: the script that SLURM's `sbatch` takes."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from pathlib import Path

__all__ = ["slurm_script"]


def slurm_script(
    job: Path,
    out: Path,
    n_movies: int,
    options: Mapping[str, str | int] | None = None,
    *,
    shards: int = 1,
) -> str:
    """A shell script that submits a movie a task, or a share of one, and a last task.

    The last one runs once all others have ended, however they did, and writes the summary; of
    movies that were shared the tables, too.  A task that is sent again does only what is not done.

    Args:
        job: the job file.
        out: folder of the output, which also takes the logs of the tasks.
        n_movies: number of movies.
        options: of `sbatch`, by their long names.
        shards: number of tasks of each.
    """
    n_tasks = n_movies * shards
    last = "" if shards > 1 else " --summary"
    command = shlex.join([sys.executable, "-m", "decode", "batch", str(job.absolute())])
    stated = "\n".join(f"#SBATCH --{name}={value}" for name, value in (options or {}).items())
    logs = out.absolute()
    return f"""#!/bin/bash
# {n_movies} movies of {job}; run it where sbatch is: bash this-script
set -euo pipefail
mkdir -p {shlex.quote(str(logs))}
movies=$(sbatch --parsable <<'TASK'
#!/bin/bash
#SBATCH --job-name={job.stem}
#SBATCH --array=1-{n_tasks}
#SBATCH --output={logs}/slurm-%A_%a.log
{stated}
exec {command} --only "$SLURM_ARRAY_TASK_ID/{n_tasks}"
TASK
)
sbatch --dependency="afterany:${{movies%%;*}}" <<'SUMMARY'
#!/bin/bash
#SBATCH --job-name={job.stem}-summary
#SBATCH --output={logs}/slurm-%j.log
{stated if shards > 1 else ""}
exec {command}{last}
SUMMARY
"""
