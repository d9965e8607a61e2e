"""Batch copies between ICAv2 projects, without Airflow.

Read in this order: `models` and `flip` (what is asked), `resolve` (from URIs to ids), `verify` and `rules` (what is proved,
what counts, as pure functions), `engine` (one pass over all destinations: `settling` closes what has ended, `sending` sends
what is missing, `sweep` clears our leftovers, `doubts` searches for lost jobs; `desk` is what they share), `report`.
"""
