"""Hosts the functions of one service."""
