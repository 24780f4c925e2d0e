"""The load test of `shoal bench`: what is sent, by whom, when, and what is told of it."""
