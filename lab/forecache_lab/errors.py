"""What a user can cause and mend."""


class UserError(ValueError):
    """Names the argument, its value and what is allowed. A command shows it as one line and exits with status 1."""
