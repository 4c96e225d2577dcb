"""Clients of the edge's HTTP routes in other languages: one file each, made from the contract. Pure.

Decisions:

- **One file without a build step.** The file has the types, the runtime and one method for each method of the contract
  that has a route and is not INTERNAL. Its first route is used. The runtime is a file of this package that is copied
  to the top.
- **Types for both directions.** The edge leaves a field at its default out of a response. The client fills it in, so a
  field without presence has a value in every response. A request may leave every field out that is not required.
- **Names are short while they are unique**: ``User``, or ``RegistrationV1User`` where two packages have a ``User``.
- **Rules are those of the OpenAPI document** (``mesh.edge.openapi.schemas``), so a page checks what the edge checks.
"""
