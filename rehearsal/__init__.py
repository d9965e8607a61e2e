"""The workshop: the virtual environment, a local Airflow with simulated remotes, and the means to stop both.

Airflow itself imports this package (`rehearsal.sqlite`, named in the stack's settings), so it must stay empty.
"""
