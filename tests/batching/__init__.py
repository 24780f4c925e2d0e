"""The batcher, on a virtual clock."""
