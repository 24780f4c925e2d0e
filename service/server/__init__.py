"""The HTTP server: uvicorn with limits on time, memory and work, and its listening sockets."""
