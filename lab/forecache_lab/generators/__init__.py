"""The generators that are measured: :mod:`.registry` names them, a module each makes its subject."""
