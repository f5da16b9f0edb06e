"""Records of runs with mlflow; the modules of this package are the only ones that know it.

By default everything lies in the working folder, ``mlflow.db`` (SQLite) and ``mlruns`` (files), and
no server is needed; ``r2l lab`` in that folder shows the runs. No global state of mlflow's is
touched: runs are written through a client of their own.
"""

from r2l.files import offer_late

offer_late(
    __name__,
    {
        "r2l.training.tracking.records": ["Records", "query", "resolve", "upload"],
        "r2l.training.tracking.run": ["Run", "track"],
        "r2l.training.tracking.store": [
            *("TrackingError", "find_run", "open_client", "serve", "sqlite_path", "store_address")
        ],
    },
)
