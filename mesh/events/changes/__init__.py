"""Change capture: triggers on declared tables, and the events of their rows (decisions: ``capture``)."""
