"""Records of runs with mlflow; the modules of this package are the only ones that know it.

By default everything lies in the working folder, ``mlflow.db`` (SQLite) and ``mlruns`` (files), and
no server is needed; ``r2l lab`` in that folder shows the runs. No global state of mlflow's is
touched: runs are written through a client of their own.
"""

from r2l.training.tracking.records import Records
from r2l.training.tracking.resolve import resolve
from r2l.training.tracking.run import Run, track
from r2l.training.tracking.serve import Server, serve
from r2l.training.tracking.store import DEFAULT_STORE, TrackingError, sqlite_path, store_address
from r2l.training.tracking.upload import upload

__all__ = [
    "DEFAULT_STORE",
    "Records",
    "Run",
    "Server",
    "TrackingError",
    "resolve",
    "serve",
    "sqlite_path",
    "store_address",
    "track",
    "upload",
]
