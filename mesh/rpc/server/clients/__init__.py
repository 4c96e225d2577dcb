"""Limits on what clients make the edge wait for, and hold in memory meanwhile.

A concurrency limit bounds work. It says nothing of clients that send slowly or do not read, because no permit is held
while the edge waits for them. Their limits are three:

- **Count**: requests whose bodies are still coming in (``[edge] uploads``).
- **Bytes**: bodies and responses that the edge holds (``[edge] buffers``).
- **Time and rate**: a client that sends or reads nothing for ``[edge] stall``, or sends less than 240 bytes a second,
  is dropped.

Count and bytes are shared fairly, and only when they are used up: the client that holds most gives back first
(``budget``). Streams that have nothing to send or to say are left alone: the time runs only while the edge has
something for the client that it does not read, or has a part of a message.

The model for the rate is Kestrel's ``MinRequestBodyDataRate`` (240 bytes/s after a grace period), that for the order
Envoy's overload manager, which resets the streams that hold most memory.
"""
