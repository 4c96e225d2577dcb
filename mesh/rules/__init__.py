"""Rules of the contract for the values of fields, and their enforcement.

Two annotations are rules:

- ``buf.validate`` (https://protovalidate.com): standard rules and CEL expressions. protovalidate evaluates them. There
  is no second engine here, and no CEL of our own.
- ``google.api.field_behavior`` (AIP-203): ``REQUIRED`` fields have to be set, ``OUTPUT_ONLY`` fields do not belong into
  a request. No engine of ``buf.validate`` knows them, so ``mesh.rules.behaviors`` does.

Decisions:

- Whether a type has rules is decided once, from its descriptor and those of the messages in it. A method whose request
  has none gets no check. protovalidate is imported only if some type has rules: that takes a tenth of a second.
- Rules are compiled when a component starts. A rule that cannot be compiled ends the start with a fault.
- Requests are checked in the process that runs the function, after decoding: calls, deliveries and each message of a
  stream pass there. Events are checked where they are published too, so that they fail where they were made.
- A violation is INVALID_ARGUMENT. A rule that fails while it is evaluated (a division by zero in CEL) is a bug of the
  contract, and INTERNAL as every other bug.
"""
