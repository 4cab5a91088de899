"""The upper bound: nothing is incremental."""

from __future__ import annotations

from dynammo.methods.base import About, Style, Task, Watch
from dynammo.methods.training import TrainedNetwork
from dynammo.training.loop import Epoch


class Joint(TrainedNetwork):
    """Trains the pretrained network anew, after every task, on all images of all classes seen."""

    about = About(
        meaning="the whole network trained anew on all images of all classes seen (upper bound)",
        source="baseline",
        memory="all",
        style=Style("#000000", "*"),
    )

    def learn(self, task: Task, watch: Watch) -> list[Epoch]:
        self.start_anew()
        self.grow(task)
        return self.fit(task.old.with_(task.new), self.cross_entropy, task, watch)
