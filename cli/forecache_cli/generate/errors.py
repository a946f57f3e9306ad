"""What a user can cause and mend."""


class LaunchError(ValueError):
    """Names the argument, its value and what is allowed."""
