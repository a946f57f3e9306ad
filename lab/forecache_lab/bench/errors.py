"""What a user can cause and mend."""


class BenchError(ValueError):
    """Names the argument, its value and what is allowed."""
