"""Real processes, real ports, real signals."""
