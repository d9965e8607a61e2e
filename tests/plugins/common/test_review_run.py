"""A review in one process of Airflow's own (`dag.test()`): asked, answered, checked again, asked anew, in the receipt."""

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


def test_check_again_is_a_new_try_and_ends_when_nothing_is_wrong_while_airflow_keeps_the_first_text(
    metadata_database: Path, receipts_folder: Path, connect: Connect, tmp_path: Path
):
    connect("waybill_approvals", json.dumps({"conn_type": "generic", "extra": {"approvers": ["amy"]}}))
    ERRORS[:] = ["sample 3 has no organism", "sample 4 has no organism"]
    dag = known_to_airflow(tmp_path)
    asked: list[str] = []
    stop = threading.Event()

    wrong: list[str] = []

    def mend() -> None:
        """Mends what the question of now, which stands beside the receipt, says to be wrong."""
        [path] = receipts_folder.rglob("questions/review.json")
        wrong.append(json.loads(path.read_text())["subject"].rstrip("?"))
        if wrong[-1] in ERRORS:  # an answer that the database was too busy for is given again
            ERRORS.remove(wrong[-1])

    def answer() -> None:
        while not stop.wait(0.3):
            try:
                _answer(DAG_ID, CHECK_AGAIN, mend, asked)
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
    questions = ["sample 3 has no organism", "sample 4 has no organism"]
    assert list(dict.fromkeys(wrong)) == questions
    # docs/protocols/airflow.md 5.5: were it otherwise, the code of an approval would not be needed
    assert {text.split("?")[0] for text in asked} == {questions[0]}
    task = run.get_task_instance("review")
    assert task.try_number > len(questions), "each answer makes a new try"
    record = json.loads((receipts_folder / DAG_ID / run.run_id / "questions" / "review.json").read_text())
    assert {one["by"] for one in record["earlier"]} == {"amy"} and len(record["earlier"]) >= 2
    assert record["state"] == "not asked"
