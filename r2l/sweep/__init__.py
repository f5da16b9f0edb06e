"""Many runs on many machines: grids of trainings or notebooks, fanned out over Dask.

A sweep (`read_sweep`) is a list of jobs. `run_sweep` sends those that are not finished to the workers of
an `Engine`, outlives workers and schedulers that die, and leaves a folder and an mlflow run for each job,
tables, and a page (`r2l.sweep.report`) with the matrix. What a job is known by is the hash of its
parameters and of the code, so that nothing that is finished is done again.
"""

import atexit
import gc
import os
import signal

from r2l.files import need_extra, offer_late

# In the process that workers are forked from: it only imports, and Ctrl-C is its driver's business.
if os.environ.pop("R2L_FORKED", None):
    gc.disable()
    atexit.register(os._exit, 0)  # else libraries print at the end what was not collected
    signal.signal(signal.SIGINT, signal.SIG_IGN)

need_extra("sweep", "dask", "distributed", "jinja2", "rich", "yaml")

offer_late(
    __name__,
    {
        "r2l.sweep.runs": ["run_sweep"],
        "r2l.sweep.engine": ["ClusterError", "open_engine"],
        "r2l.sweep.jobs": ["Job", "ParameterError", "read_sweep"],
    },
)
