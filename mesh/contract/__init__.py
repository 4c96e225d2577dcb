"""Contract: compiles and checks .proto files and holds the result as frozen values.

Decisions:

- The contract is the whole API. HTTP routes, access, deadlines, retry safety, triggers and dependencies are proto
  options (``protos/meshapi/v1/annotations.proto``). Edge, sidecar, graph, OpenAPI document and docs derive from it.
- The loader makes all checks and reports all faults at once. A ``Contract`` that exists is valid.
- Message classes live in a descriptor pool of the contract's own, so they never clash with generated code.
- protoc is that of grpcio-tools and runs as a process, because only its standard error holds the diagnostics.

The package knows no transport, no configuration and no running service.
"""
