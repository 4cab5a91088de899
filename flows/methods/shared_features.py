"""One head over all classes, on features of the merged adapter or of the bare backbone."""

from __future__ import annotations

from dynammo.methods import METHODS
from flows.methods.adapting import batch_features, remember
from flows.methods.base import Exam, Lesson, Steps, answers, takes_statistics
from tasks.evaluate import evaluate
from tasks.extract_features import extract_test_features
from tasks.fit_head import fit_head
from tasks.support.stage import Learnt, learnt
from tasks.update_statistics import update_statistics


class SharedFeatures(Steps):
    """merged and frozen."""

    def learn(self, lesson: Lesson) -> Learnt:
        """Bring the class statistics or the memory up to date, and fit the head to them."""
        config, classes, was = lesson.config, lesson.classes, self.before(lesson)
        here = lesson.named(self.name)
        adapted = lesson.stage["adapted"] if METHODS[self.name].shared_adapters else None
        if adapted is not None:
            assert adapted["features"] is not None
            adapter, task_heads = adapted["merged"], adapted["heads"]
            features, exemplars = adapted["features"], adapted["exemplars"]
        else:
            # The tasks' heads were trained on adapters' features: no use to the bare ones.
            adapter, task_heads = None, []
            features, exemplars = batch_features(here, None), None
            if not takes_statistics(config):
                exemplars = remember(here, None, features, was["exemplars"] if was else None)
        statistics, parts = None, was["parts"] if was else []
        if takes_statistics(config):
            updated = update_statistics(
                *lesson.network,
                config.head.flip,
                config.head.power,
                config.head.drift_ridge,
                config.head.pooling,
                lesson.known,
                classes,
                features,
                lesson.backbone,
                adapter,
                was["adapter"] if was else None,
                was["statistics"] if was else None,
                was["exemplars"] if was else None,
                here.context,
            )
            statistics = updated["statistics"]
            parts = [
                *parts,
                {
                    "batch": lesson.batch["number"],
                    "classes": classes["names"],
                    "statistics": updated["batch"],
                    "drift": updated["drift"],
                },
            ]
        head = fit_head(
            config.seed,
            *lesson.network,
            config.head,
            self.name,
            lesson.known,
            lesson.backbone,
            adapter,
            task_heads,
            None if takes_statistics(config) else exemplars,
            statistics,
            classes,
            features,
            was["heads"][0] if was else None,
            lesson.context,
        )
        return learnt(
            adapter=adapter, heads=[head], exemplars=exemplars, statistics=statistics, parts=parts
        )

    def evaluate(self, own: Learnt, was: Learnt | None, exam: Exam) -> Learnt:
        """Take the features of all test images once, and measure the head on them."""
        here = exam.context.named(self.name)
        features = [
            extract_test_features(*exam.network, exam.backbone, own["adapter"], exam.tests, here)
        ]
        evaluated = evaluate(
            *exam.network,
            exam.config.classes,
            self.name,
            exam.tasks,
            exam.learnt,
            exam.tests,
            features,
            own["heads"],
            answers(was),
            exam.context,
            exam.config.clinical if exam.counts else None,
            exam.counts,
        )
        return {**own, "features": features, "evaluated": evaluated}
