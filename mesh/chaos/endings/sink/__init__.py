"""The service that is called for events, changes and a schedule."""
