"""The HTTP server: uvicorn with safe limits, and the sockets that it listens on."""
