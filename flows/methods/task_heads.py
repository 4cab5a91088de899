"""Every adapter kept, with a head for its own task."""

from __future__ import annotations

from flows.methods.base import Exam, Lesson, Steps, answers
from tasks.evaluate import evaluate
from tasks.extract_features import extract_test_features
from tasks.fit_head import fine_tune_task_heads
from tasks.support.stage import Learnt, learnt


class TaskHeads(Steps):
    """unmerged."""

    def learn(self, lesson: Lesson) -> Learnt:
        """Fine-tune every task's head again, on the new memory."""
        adapted, was = lesson.stage["adapted"], self.before(lesson)
        assert adapted is not None
        heads = fine_tune_task_heads(
            lesson.config.seed,
            *lesson.network,
            lesson.config.head,
            [len(names) for names in lesson.stage["tasks"]],
            lesson.backbone,
            adapted["adapters"],
            [*(was["heads"] if was else []), adapted["heads"][-1]],
            adapted["exemplars"],
            lesson.context,
        )
        return learnt(adapters=adapted["adapters"], heads=heads, exemplars=adapted["exemplars"])

    def evaluate(self, own: Learnt, was: Learnt | None, exam: Exam) -> Learnt:
        """Take features of all test images under each new adapter, and measure all heads."""
        done = was["features"] if was else []
        here = exam.context.named("adapter")
        features = [
            *done,
            *(
                extract_test_features(*exam.network, exam.backbone, adapter, exam.tests, here)
                for adapter in own["adapters"][len(done) :]
            ),
        ]
        evaluated = evaluate(
            *exam.network,
            exam.config.classes,
            self.name,
            exam.tasks,
            len(own["adapters"]),
            exam.tests,
            features,
            own["heads"],
            answers(was),
            exam.context,
        )
        return {**own, "features": features, "evaluated": evaluated}
