"""Research: the evidence behind the defaults. Not in the wheel."""
