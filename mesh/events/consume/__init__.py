"""Consuming: deliveries in the order of their keys, attempts, dead letters, redrive, schedules and the inbox."""
