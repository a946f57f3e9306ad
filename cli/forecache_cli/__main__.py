"""``python -m forecache_cli``."""

from .main import app

app(prog_name="forecache")
