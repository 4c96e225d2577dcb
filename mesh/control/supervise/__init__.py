"""Supervision: starts the processes of a mesh, restarts, reloads and stops them. Reads no contract of its own."""
