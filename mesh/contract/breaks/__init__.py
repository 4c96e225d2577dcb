"""Breaking changes between two contracts. Pure: descriptors in, breaks out.

Decisions:

- The comparison is the mesh's own, also for what buf compares. The verdict must not depend on an installed tool, and
  buf sees no option of ``meshapi``, passes a removed method in WIRE_JSON, and refuses changes that break nobody
  (``message_breaks``). Tests hold it to ``buf breaking`` where both speak.
- The measure is the binary form and JSON, not generated code: type checkers see that.
- Every option of a method, a service or an event has a verdict (docs/compatibility.md).
- An element that only got wider (more callers, more routes, fewer rules, a longer timeout) is no break.
- Each break names who is affected and a change that would not be one.
- A break is accepted in the contract, with its reason. Nothing else switches a rule off.
"""
