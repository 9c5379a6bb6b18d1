"""Trajectory data: environments, episodes and windows of steps."""
