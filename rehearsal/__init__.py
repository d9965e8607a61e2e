"""The local stack: the virtual environment, a local Airflow with simulated remotes, the demo, and the means to stop them.

Invariant: this file imports nothing, since Airflow imports the package too (`rehearsal.sqlite`, named in the stack's settings).
"""
