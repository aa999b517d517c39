"""How much an acting learner collects, keeps and draws (collection.py says when and of whom)."""

from __future__ import annotations

from dataclasses import dataclass

from metarun.errors import require

INITIAL_ACTIONS = ("policy", "held")


@dataclass(frozen=True)
class Sizes:
    """The settings of it."""

    batch: int  # transitions of a task in a gradient
    context_batch: int  # transitions of a context
    capacity: int  # of each task's replay buffer
    initial_trajectories: int
    initial_actions: str  # policy, held
    collect_every: int
    collect_tasks: int
    trajectories: tuple[int, int, int]  # prior, posterior, extra
    renew_posterior: bool

    def __post_init__(self) -> None:
        for name in ("batch", "context_batch", "capacity", "initial_trajectories", "collect_every", "collect_tasks"):
            require(1 <= getattr(self, name) < 2**31, name, getattr(self, name), "must be at least 1")
        choices = "choices: " + ", ".join(INITIAL_ACTIONS)
        require(self.initial_actions in INITIAL_ACTIONS, "initial_actions", self.initial_actions, choices)
        counts = self.trajectories
        sound = len(counts) == 3 and counts[0] >= 1 and min(counts) >= 0
        require(sound, "trajectories", list(counts), "must be [prior, posterior, extra], the first at least 1")
        needed = (
            f"must be at least {self.recent}, the prior and posterior trajectories: contexts are drawn from as many"
        )
        require(self.initial_trajectories >= self.recent, "initial_trajectories", self.initial_trajectories, needed)

    @property
    def recent(self) -> int:
        """Trajectories that contexts are drawn from."""
        return sum(self.trajectories[:2])

    @property
    def rounds(self) -> tuple[int, ...]:
        """Posterior trajectories that are walked with z from the same context, time after time."""
        count = self.trajectories[1]
        return (1,) * count if self.renew_posterior else (count,) * (count > 0)
