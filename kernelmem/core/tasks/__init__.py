"""Independent tasks on the processors there are: serial, threads, processes, or a cluster.

run         run_tasks: attempts, time limits, the rest kept when a task fails
calls       one task as it is sent to a worker: pickled by value, errors returned as values
workers     the user's executor; worker processes that replace a broken pool
slurm       PEP 3148 executor of Slurm jobs, by submitit
threads     one thread of torch per worker
"""

from kernelmem.core.tasks.run import run_tasks as run_tasks
from kernelmem.core.tasks.slurm import SubmititExecutor as SubmititExecutor
from kernelmem.core.tasks.threads import one_thread as one_thread
from kernelmem.core.tasks.threads import one_thread_per_worker as one_thread_per_worker
