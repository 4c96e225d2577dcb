"""The service that is called through the edge."""
