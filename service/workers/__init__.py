"""Several processes: front ends that serve HTTP and gRPC, and one process that runs the engine.

The supervisor (`supervisor`) starts and restarts these processes (`process`) and sends settings to
each process (`bootstrap`). Front ends send images to the engine process (`engine_process`) in
frames (`frames`) over a Unix socket (`connection`). `engine_client` is the front ends' side of the
connection, and `engine_server` is the side of the engine process. `error_codec` encodes the
exceptions that the engine process sends back.
"""
