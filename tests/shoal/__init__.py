"""The command and the client."""
