"""Decoding uploads: headers, small images, and processes that decode everything else."""
