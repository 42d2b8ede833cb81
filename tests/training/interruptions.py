"""Trainings that are interrupted."""


class InterruptionError(Exception):
    """Ends a training."""


def interrupting_after(epochs):
    """A `watch` that lets so many epochs be, and interrupts the next before its checkpoint is written."""
    left = [epochs]

    def watch(model):
        left[0] -= 1
        if left[0] < 0:
            raise InterruptionError
        return {}

    return watch
