"""The lower bound: go on training with the new task's images alone."""

from __future__ import annotations

from dynammo.methods.base import About, Style, Task, Watch
from dynammo.methods.training import TrainedNetwork
from dynammo.training.loop import Epoch


class Finetune(TrainedNetwork):
    """Minimises the cross-entropy over all classes seen, on the new images."""

    about = About(
        meaning="the whole network goes on training, on the new images alone (lower bound)",
        source="baseline",
        memory="none",
        style=Style("#999999", "v"),
    )

    def learn(self, task: Task, watch: Watch) -> list[Epoch]:
        self.grow(task)
        return self.fit(task.new, self.cross_entropy, task, watch)
