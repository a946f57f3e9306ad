"""Questions asked once, each answered by a command: what `auto` chooses, what guidance edges cost, how far plans go."""
