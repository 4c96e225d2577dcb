"""The service without a database."""
