"""Connection arguments for Airflow's metadata database on SQLite, named in the stack's settings by import path.

SQLite's default is to give up on a locked database after 5 s, which Airflow turns into HTTP 500 on a busy machine.
"""

CONNECT_ARGS = {"timeout": 60}
CONNECT_ARGS_ASYNC = {"timeout": 60}
