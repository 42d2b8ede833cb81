"""Trainings that are interrupted."""


class InterruptionError(Exception):
    """Ends a training."""


def interrupt_after(epochs):
    """An `on_epoch_end` that interrupts the run after this many epochs, before the checkpoint of the next one is written."""
    left = [epochs]

    def on_epoch_end(model):
        left[0] -= 1
        if left[0] < 0:
            raise InterruptionError
        return {}

    return on_epoch_end
