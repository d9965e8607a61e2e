# The image of every Airflow service in docker-compose.yaml: Airflow and the pinned requirements, without our own code,
# which is mounted. So a change of a DAG needs no build, and a change of requirements.txt needs nothing else.
FROM apache/airflow:slim-3.3.2-python3.11

# requirements.txt pins Airflow itself too: with the image's version, nothing of Airflow is replaced.
COPY requirements.txt /tmp/requirements.txt
RUN pip install --no-cache-dir --requirement /tmp/requirements.txt

# Only for `COMPOSE_PROFILES=celery`. The constraint keeps it from moving what was tested.
ARG CELERY="apache-airflow-providers-celery[redis]==3.26.0"
RUN if [ -n "${CELERY}" ]; then \
      pip install --no-cache-dir "${CELERY}" --constraint /tmp/requirements.txt; \
    fi

# Named volumes take the owner of the folder they cover; without these they would belong to root.
RUN mkdir -p /opt/airflow/auth /opt/airflow/logs

ENV PYTHONPATH=/opt/airflow
