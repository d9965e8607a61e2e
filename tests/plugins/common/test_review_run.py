"""A review in one process of Airflow's own (`dag.test()`): asked, answered, checked again, asked anew with the text of now."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

from operators.common.review import ReviewOperator

from include.core.questions import CHECK_AGAIN, STOP, Question
from tests.plugins.conftest import Connect
from tests.plugins.plates.test_backup_run import _answer

DAG_ID = "review_of_a_submission"
ERRORS: list[str] = []


class Validation(ReviewOperator):
    def question(self, context: Any) -> Question | None:
        if not ERRORS:
            return None
        body = "; ".join(ERRORS)
        return Question(
            f"{ERRORS[0]}?", body, body.encode().hex(), days=1, options=(CHECK_AGAIN, STOP), stopping=(STOP,)
        )


DAG_FILE = f"""
from airflow.sdk import DAG
from operators.common.base import DEFAULT_ARGS
from {__name__} import Validation

with DAG("{DAG_ID}", schedule=None, default_args=DEFAULT_ARGS):
    Validation(task_id="review")
"""


def known_to_airflow(folder: Path) -> Any:
    """The DAG of one review, as `dag.test()` wants it: parsed from a file, and in the metadata database."""
    import airflow.models
    from airflow.dag_processing.bundles.manager import DagBundlesManager
    from airflow.dag_processing.dagbag import DagBag, sync_bag_to_db
    from sqlalchemy.orm import configure_mappers

    airflow.models.import_all_models()
    configure_mappers()
    (folder / "dags").mkdir()
    (folder / "dags" / "review.py").write_text(DAG_FILE)
    bag = DagBag(str(folder / "dags"), collect_dags=True)
    manager = DagBundlesManager()
    manager.sync_bundles_to_db()
    sync_bag_to_db(bag, next(iter(manager.get_all_dag_bundles())).name, None)
    return bag.dags[DAG_ID]


def test_check_again_is_a_new_try_with_a_new_text_and_ends_when_nothing_is_wrong(
    metadata_database: Path, receipts_folder: Path, connect: Connect, tmp_path: Path
):
    connect("waybill_approvals", json.dumps({"conn_type": "generic", "extra": {"approvers": ["amy"]}}))
    ERRORS[:] = ["sample 3 has no organism", "sample 4 has no organism"]
    dag = known_to_airflow(tmp_path)
    asked: list[str] = []
    stop = threading.Event()

    def mend() -> None:
        wrong = asked[-1].split("?")[0]
        if wrong in ERRORS:  # an answer that the database was too busy for is given again
            ERRORS.remove(wrong)

    def answer() -> None:
        answers = [CHECK_AGAIN, CHECK_AGAIN]
        while answers and not stop.wait(0.3):
            try:
                if _answer(DAG_ID, answers[0], mend, asked):
                    answers.pop(0)
            except Exception:  # the database may be busy with the run itself: look again
                continue

    thread = threading.Thread(target=answer, daemon=True)
    thread.start()
    try:
        run = dag.test()
    finally:
        stop.set()
        thread.join(30)
    assert str(run.state) == "success"
    questions = dict.fromkeys(text.split("?")[0] for text in asked)
    assert list(questions) == ["sample 3 has no organism", "sample 4 has no organism"]
    task = run.get_task_instance("review")
    assert task.try_number == 3
    record = json.loads((receipts_folder / DAG_ID / run.run_id / "questions" / "review.json").read_text())
    assert [one["by"] for one in record["earlier"]] == ["amy", "amy"]
    assert record["state"] == "not asked"
