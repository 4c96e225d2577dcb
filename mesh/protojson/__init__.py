"""Proto JSON ⇄ messages, compiled once for each message type on orjson. Exact to the proto3 JSON mapping."""
