"""Decodes uploaded images: reads headers, decodes small images, and runs decoder processes."""
