"""Hostile and honest clients: how people, rather than crashes, put a mesh under load.

``attack_target`` names the server under attack, ``attacks`` lists the attackers, ``attack_process`` runs one of them in
a process of its own, and ``honest_client`` measures the service that another client gets meanwhile. ``campaign`` is
what ``mesh chaos --people`` runs; ``benchmarks.abuse`` and ``tests/abuse`` use the other modules too.

- **An attacker keeps to HTTP, and to no manners.** Each frame and each head is valid. Nothing here sends a malformed
  message: the aim is load, not the parser.
- **An attacker comes back.** A stream or a connection that the server ends is opened again, at a bounded rate. As many
  connections are used as the server's limit of streams asks for.
- **An attacker has an address of its own** (``AttackTarget.source``), as on the internet. On Linux, all of 127.0.0.0/8
  is loopback.
- **An attacker is a process**, so that its work does not delay the clock of the honest client.
"""
