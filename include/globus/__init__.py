"""Globus Transfer, without Airflow: read `batch` (what is asked for), `client` (calls), `transfer` (one task per batch, watched,
and what became of each file)."""
