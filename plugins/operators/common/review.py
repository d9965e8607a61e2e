"""Shows a person what is wrong; they mend it outside and say "check again", or "stop".

Invariant: an answer makes nothing right. After "check again" the thing is looked at anew, and asked about again while
it is wrong. A review that was marked success has proved nothing, so what follows looks for itself.
"""

from __future__ import annotations

from typing import Any

from airflow.sdk import Context
from hooks.questions import approvers, question_store, triggered_by
from hooks.task import run_async
from operators.common.question import AskAgain, QuestionOperator

from include.core.errors import RequestError, Stopped
from include.core.questions import CHECK_AGAIN, STOP, People, Record, judge


class ReviewOperator(QuestionOperator):
    """Succeeds once nothing is wrong, without any question where nothing was; fails, without retry, on `STOP`.

    A subclass's `question` looks at the thing and returns what is wrong with it, with these options, or None.
    """

    options_of_kind = (CHECK_AGAIN, STOP)
    needs_code = False  # whatever was read, the thing is looked at anew

    def people(self, context: Context) -> People:
        """The approvers of the DAG, and whoever triggered the run: to look again is no leave for anything."""
        asker = triggered_by(context)
        try:
            listed = approvers(context["ti"].dag_id).ids
        except RequestError:
            if asker is None:
                raise
            listed = ()
        return People(tuple(dict.fromkeys([*listed, *([asker] if asker else [])])), self_approval=True)

    def nothing_to_ask(self, context: Context) -> Any:
        self.log.info("nothing is wrong")

    def answered(self, context: Context, record: Record) -> None:
        judged = judge(record, record.sha256, self.people(context))
        run_async(question_store(context).write(judged))
        if judged.state == "rejected":
            raise Stopped(f"{judged.by} answered “{judged.option}” to: {judged.subject}")
        raise AskAgain(f"{judged.by} says that it is mended: it is checked again")
