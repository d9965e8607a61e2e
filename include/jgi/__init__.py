"""Tape staging at JGI, without Airflow: GOLD and JDP, what is asked for and when, and what MongoDB keeps of each file.

Read `models` first, then `planner`, `tracking`, `restoring`. Globus is in `include.globus`.
"""
