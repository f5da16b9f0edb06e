"""Records of runs with mlflow; the modules of this package are the only ones that know it.

By default everything lies in the working folder, ``mlflow.db`` (SQLite) and ``mlruns`` (files), and
no server is needed; ``r2l lab`` in that folder shows the runs. No global state of mlflow's is
touched: runs are written through a client of their own.
"""

from r2l.training.tracking.outage import upload
from r2l.training.tracking.records import Records, resolve
from r2l.training.tracking.run import Run, track
from r2l.training.tracking.serve import serve
from r2l.training.tracking.store import TrackingError, open_client, sqlite_path, store_address
