"""Waybill's science and protocols: no Airflow in here (see README, "Where things are")."""

__version__ = "0.1.0"
