"""State machines and tables: no socket, no clock, no randomness of their own; time and ids come as arguments."""
