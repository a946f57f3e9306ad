"""The command line ``forecache``."""
