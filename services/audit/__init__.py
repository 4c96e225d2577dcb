"""Audit log of user accounts."""
