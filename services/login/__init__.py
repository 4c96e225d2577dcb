"""Passwords, sessions and tokens."""
