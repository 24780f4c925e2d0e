"""Several processes: front ends that serve HTTP and gRPC, and one process that runs the engine.

The supervisor (`supervisor`) starts and restarts these processes (`process`) and sends each its
settings (`bootstrap`). Front ends send images to the engine process (`engine_process`) in frames
(`frames`) over a Unix socket (`connection`). `engine_client` is the front end's side of that socket
and `engine_server` the engine's. `error_codec` carries exceptions from one side to the other.
"""
