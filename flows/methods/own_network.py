"""A network of the method's own: whatever is learnt through `dynammo.methods.base.Method`."""

from __future__ import annotations

from dynammo.methods import METHODS
from flows.methods.base import Exam, Lesson, Steps, answers
from tasks.extract_features import extract_test_features
from tasks.learn_method import evaluate_method, learn_task, method_config, remember
from tasks.support.stage import Learnt, learnt


class OwnNetwork(Steps):
    """Every other method."""

    def learn(self, lesson: Lesson) -> Learnt:
        """Learn the task, then remember."""
        was, memory = self.before(lesson), METHODS[self.name].about.memory
        found = learn_task(
            method_config(lesson.config, self.name),
            lesson.batch["number"],
            lesson.classes,
            len(lesson.known_before),
            lesson.before["training"] if lesson.before and memory == "all" else [],
            lesson.backbone,
            was["state"] if was else None,
            was["exemplars"] if was else None,
            lesson.context,
        )
        state, exemplars = found["state"], None
        if memory == "exemplars":
            remembered = remember(
                method_config(lesson.config, self.name, "memory"),
                lesson.known,
                lesson.classes,
                lesson.backbone,
                state,
                was["exemplars"] if was else None,
                lesson.context,
            )
            state, exemplars = remembered["state"], remembered["exemplars"]
        return learnt(state=state, history=found["history"], exemplars=exemplars)

    def evaluate(self, own: Learnt, was: Learnt | None, exam: Exam) -> Learnt:
        """Measure its own predictions."""
        assert own["state"] is not None
        bare = None
        if METHODS[self.name].bare:
            here = exam.context.named(self.name)
            bare = extract_test_features(*exam.network, exam.backbone, None, exam.tests, here)
        evaluated = evaluate_method(
            method_config(exam.config, self.name, "classes"),
            exam.tasks,
            exam.learnt,
            exam.tests,
            exam.backbone,
            own["state"],
            bare,
            answers(was),
            exam.context,
        )
        return {**own, "evaluated": evaluated}
