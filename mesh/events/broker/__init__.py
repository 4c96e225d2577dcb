"""The NATS broker: connections, streams, stored messages, and the server that ``mesh up`` runs."""
