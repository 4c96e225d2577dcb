"""The commands that run and show a mesh."""
