"""Several processes: front ends that speak HTTP, and one that owns the engine.

A supervisor (`supervisor`) starts them and keeps them. Front ends hand images to the engine's
process over a Unix-domain socket in frames (`frames`, `link`): `remote` is the front end's side and
`hub` the engine's. What a request goes through is the same with one process and with many.
"""
