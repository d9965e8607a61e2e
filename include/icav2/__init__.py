"""Batch copies between ICAv2 projects, without Airflow.

Read in this order: `models` and `manifest` (what is asked), `plan` (from URIs to ids), `verify` and `rules` (what is proved,
what counts, as pure functions), `engine` (one pass over all destinations: `reconcile` closes what has ended, `submit` sends
what is missing, `cleanup` deletes partial files of ours, `job_search` finds jobs whose answer was lost; `context` is what
they share), `watch` (one look at all jobs), `report`.
"""
