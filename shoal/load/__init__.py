"""The load generator of `shoal bench`: images, arrival times, connections, and the report."""
