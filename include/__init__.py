"""Waybill's science and protocols: no Airflow in here (see README, "Where things are")."""
