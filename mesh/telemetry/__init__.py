"""The only room that configures OpenTelemetry."""
