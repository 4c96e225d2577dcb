"""Functions in worker processes, from zero to as many as there is work for."""
