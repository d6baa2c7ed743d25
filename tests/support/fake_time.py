"""A clock that tests set, as a replacement for a module's `time`."""


class FakeTime:
    """Replaces the `time` module: monotonic time passes only when a test adds to `now`."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        """Returns the time in s."""
        return self.now
