"""Connection arguments for Airflow's metadata database on SQLite, named in the stack's settings by import path.

SQLite's default is to give up on a locked database after 5 s, which the scheduler does not survive. The API server must
give up sooner: it commits its audit log on the event loop, and the transaction that holds the one write lock may wait for
that loop, so until one of them gives up nothing moves (docs/protocols/airflow.md 4.5).
"""

import sys

SECONDS = 2 if "api-server" in sys.argv else 60
CONNECT_ARGS = {"timeout": SECONDS}
CONNECT_ARGS_ASYNC = {"timeout": SECONDS}
