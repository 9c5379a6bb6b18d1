"""Matching of images and texts with a dual encoder."""
